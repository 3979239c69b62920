"""Pre-train a built-in base on the known-answer world: ``python -m qrlora.world.pretrain tiny-sdxl``.

The learning rate is constant and falls linearly to zero over the last part, so that a run can be lengthened later from
the checkpoint ``plateau.pt`` that is kept where the fall begins.  Every checkpoint holds all state, the random
generator's too: a run that was killed and resumed equals one that was not, bit for bit on CPU.
"""

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from ..families import FAMILIES, Framing
from ..noise import noising_of
from ..training import denoising_loss
from .atlas import SIZE, known_contents, true_pictures
from .autoencoder import encode
from .captions import STYLE, training_caption
from .models import BASES, BLUEPRINTS, world_patches
from .random_styles import random_style
from .styles import STYLES

GROUP = 4
"""Pictures of a batch that share a random style: a style has a price to draw and to check."""


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    samples: int = 600_000
    """Pictures shown in all, with repetition."""
    batch_size: int = 48
    """Pictures a step."""
    learning_rate: float = 1e-3
    """Of both optimizers, on the plateau."""
    warmup: int = 300
    """Steps over which the rate rises from zero."""
    decay: float = 0.3
    """Part of the run, at its end, over which the rate falls to zero."""
    average: float = 0.999
    """Decay a step of the moving average of the weights; the average is what ships."""
    random_styles: float = 0.35
    """Share of pictures in a style drawn at random, whose caption calls it ``<s>``."""
    start: str = ""
    """A finished base of the same shape whose weights it starts from, by built-in name or folder; empty: none."""
    seed: int = 0

    @property
    def steps(self) -> int:
        return self.samples // self.batch_size

    def rate(self, step: int) -> float:
        left = (self.steps - step) / max(1, self.decay * self.steps)
        return self.learning_rate * min(1.0, (step + 1) / self.warmup, left)


def optimizers(model: nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks, AdamW for all else.

    Muon (Jordan et al. 2024) steps by the orthogonalised momentum, here scaled to the size of AdamW's steps
    (arXiv 2502.16982). ``tiny-flux`` after 14,400 pictures: loss 0.463 against 0.472 with AdamW alone, falling faster.
    """
    named = dict(model.named_parameters())
    inner = {name: p for name, p in named.items() if "block" in name and p.ndim == 2 and min(p.shape) >= 32}
    rest = [p for name, p in named.items() if name not in inner]
    return [
        torch.optim.Muon(inner.values(), lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True),
    ]


def finished(start: str) -> Path:
    """Folder of the base that a run starts from."""
    return BASES / start if (BASES / start).is_dir() else Path(start)


class Run:
    """All that changes while training, and how it is kept."""

    def __init__(self, base: str, settings: Pretraining, device: str) -> None:
        self.settings, self.device, self.step = settings, device, 0
        blueprint = BLUEPRINTS[base]
        torch.manual_seed(settings.seed)
        self.pipe = blueprint.build()
        if settings.start:
            self._start_from(finished(settings.start))
        self.family = next(f for f in FAMILIES.values() if f.pipeline == type(self.pipe).__name__)
        self.noising = noising_of(self.pipe.scheduler.config, times=blueprint.times)
        self.pipe.to(device)
        for part in self.pipe.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        self.model = nn.ModuleDict({part: getattr(self.pipe, part).train() for part in blueprint.learns})
        self.model.requires_grad_(True).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.optimizers = optimizers(self.model, settings.learning_rate)
        self.generator = torch.Generator().manual_seed(settings.seed)

    def _start_from(self, folder: Path) -> None:
        base = type(self.pipe).from_pretrained(folder, torch_dtype=torch.float32)
        for name, part in base.components.items():
            if isinstance(part, nn.Module):
                getattr(self.pipe, name).load_state_dict(part.state_dict())

    def save(self, path: Path) -> None:
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "generator": self.generator.get_state(),
            "settings": asdict(self.settings),
        }
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.generator.set_state(state["generator"].cpu())

    def update_average(self) -> None:
        weight = 1 - min(self.settings.average, (self.step + 1) / (self.step + 10))
        own = list(self.model.state_dict().values())
        torch._foreach_lerp_(list(self.average.values()), own, weight)

    def averaged_pipeline(self) -> Any:
        """The pipeline with the averaged weights in place of the last ones, ready to sample or to save."""
        self.model.load_state_dict(self.average)
        self.model.eval().requires_grad_(False)
        return self.pipe


def world_latents() -> Tensor:
    """Latents of all known contents in all known styles: (style, content, 16, 16, 16), float32, variance 1."""
    patches = world_patches()
    return torch.stack([encode(true_pictures(known_contents(), s) * 2 - 1, *patches) for s in STYLES])


def lesson(run: Run, latents: Tensor) -> tuple[Tensor, list[str]]:
    """A batch of things in styles, random styles first: clean latents (b, 16, 16, 16) and captions."""
    g, b = run.generator, run.settings.batch_size
    names, styles = known_contents(), tuple(STYLES)
    content, style = torch.randint(len(names), (b,), generator=g), torch.randint(len(styles), (b,), generator=g)
    groups = round(run.settings.random_styles * b / GROUP)
    words = [STYLE] * (groups * GROUP) + [styles[s] for s in style[groups * GROUP :]]
    drawn = []
    for k in range(groups):
        things = [names[c] for c in content[k * GROUP : (k + 1) * GROUP]]
        drawn.append(random_style(g)(true_pictures(things)).clamp(0, 1))
    clean = latents[style, content]
    if drawn:
        clean[: groups * GROUP] = encode(torch.cat(drawn) * 2 - 1, *world_patches()).to(clean)
    return clean, [training_caption(names[c], word, g) for c, word in zip(content, words, strict=True)]


def loss_of_step(run: Run, latents: Tensor) -> Tensor:
    """The family's own training loss on one random batch, the text encoders that learn within its gradient."""
    clean, captions = lesson(run, latents)
    time_ = run.noising.sample_time(len(clean), run.generator).to(run.device)
    noise = torch.randn(clean.shape, generator=run.generator).to(run.device)
    clean = clean.to(run.device, memory_format=torch.channels_last)
    with torch.autocast(run.device, torch.bfloat16, enabled=run.device != "cpu"):
        condition = run.family.encode_prompt(run.pipe, captions, Framing.plain(SIZE, SIZE))
        model = getattr(run.pipe, run.family.part)
        return denoising_loss(run.family.predict, model, run.noising, clean, noise, time_, condition)


def step(run: Run, latents: Tensor) -> Tensor:
    """One update of weights and average; the loss."""
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = run.settings.rate(run.step)
    loss = loss_of_step(run, latents)
    loss.backward()
    nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    for optimizer in run.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    run.update_average()
    run.step += 1
    return loss.detach()


def pretrain(
    base: str, folder: Path, settings: Pretraining, device: str, every: int, minutes: float, keep: int = 0
) -> Run:
    """Train until all samples are shown or ``minutes`` are over; goes on from ``folder/last.pt`` if there.

    Every ``keep`` steps a checkpoint stays beside it, ``step-N.pt``, for `score.learning_curve`; 0: none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(base, settings, device)
    if (folder / "last.pt").exists():
        run.load(folder / "last.pt")
    latents = world_latents()
    start, started_at, losses = time.monotonic(), run.step, []
    plateau = int((1 - settings.decay) * settings.steps)
    while run.step < settings.steps and time.monotonic() - start < minutes * 60:
        losses.append(step(run, latents))
        if run.step % 50 == 0:
            mean = float(torch.stack(losses).mean())
            losses.clear()
            if not mean < float("inf"):
                raise ValueError(f"the loss is {mean} at step {run.step}; start again with a lower --learning-rate")
            done = run.step - started_at
            rate = done * settings.batch_size / (time.monotonic() - start)
            left = (settings.steps - run.step) * settings.batch_size / rate / 60
            row = {"step": run.step, "samples": run.step * settings.batch_size, "loss": round(mean, 4)}
            row |= {"samples_per_second": round(rate, 1), "minutes_left": round(left, 1)}
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            print(row, flush=True)
        if run.step == plateau:
            run.save(folder / "plateau.pt")
        if run.step % every == 0:
            run.save(folder / "last.pt")
        if keep and run.step % keep == 0:
            run.save(folder / f"step-{run.step}.pt")
    if run.step > started_at:
        run.save(folder / "last.pt")
    return run


def write_pipeline(run: Run, folder: Path) -> None:
    """The averaged base as a stock pipeline's folder: 16-bit weights, the VAE in 32 (its constants need the range)."""
    pipe = run.averaged_pipeline().to("cpu")
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module) and name != "vae":
            part.half()
    logging.disable_progress_bar()
    pipe.save_pretrained(folder)
    for config in folder.glob("text_encoder*/config.json"):  # transformers opens in the dtype that is written here
        config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))


def export(run: Run, log: Path, folder: Path) -> None:
    """Write the averaged base, and ``training.json`` beside it: what the model card says of the run.

    That is its settings and the curve of the loss; of a run that started from a finished base, that base's under
    "before".
    """
    start = run.settings.start
    before = {"before": json.loads((finished(start) / "training.json").read_text())} if start else {}
    write_pipeline(run, folder)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    hours = rows[-1]["samples"] / median(row["samples_per_second"] for row in rows) / 3600
    told = {
        "settings": asdict(run.settings) | {"start": Path(start).name},
        "optimizer": " and ".join(type(optimizer).__name__ for optimizer in run.optimizers),
        "machine": f"on {run.device}, {os.cpu_count()} cores, about {hours:.1f} hours.",
        "loss": [[r["samples"], r["loss"]] for r in rows[9::20]],
        **before,
    }
    (folder / "training.json").write_text(json.dumps(told) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", choices=BLUEPRINTS)
    parser.add_argument("--run", type=Path, help="folder of checkpoints; default runs/BASE")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; nothing else needs to change")
    parser.add_argument("--every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--keep", type=int, default=0, help="steps between checkpoints that stay, for a learning curve")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop after so long; go on by calling again"
    )
    for name, value in asdict(Pretraining()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    args = vars(parser.parse_args())
    base, folder = args.pop("base"), args.pop("run")
    device, every, minutes, keep = (args.pop(name) for name in ("device", "every", "minutes", "keep"))
    folder = folder or Path("runs") / base
    run = pretrain(base, folder, Pretraining(**args), device, every, minutes, keep)
    if run.step >= run.settings.steps:
        export(run, folder / "log.jsonl", BASES / base)


if __name__ == "__main__":
    main()
