"""A built-in base while it is pre-trained: its weights, optimizers and average, one batch, one step, checkpoints."""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..families import FAMILIES
from ..families.record import Condition
from ..noising import noising_of
from ..training import denoising_loss
from .base_architectures import BASES, BLUEPRINTS, Tokens
from .captions import training_caption
from .muon import Muon
from .pretraining_set import TrainingSet

MAY_CHANGE = ("samples", "decay")
"""Settings with which a run may go on that began with others: a run may be lengthened."""


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    samples: int = 1_000_000
    """Pictures shown in all, with repetition."""
    batch_size: int = 64
    """Pictures a step."""
    learning_rate: float = 1e-3
    """Of both optimizers, on the plateau."""
    warmup: int = 200
    """Steps over which the rate rises from zero."""
    decay: float = 0.3
    """Part of the run, at its end, over which the rate falls to zero."""
    average: float = 0.999
    """Decay a step of the moving average of the weights; the average is what ships."""
    styled_hands: int = 4_000
    """Pictures in the training set of contents by other hands than the plain one, in styles with a word."""
    random: int = 10_000
    """Pictures in the training set in styles drawn at random, whose captions call them ``<s>``."""
    dtype: str = "auto"
    """Of the forward and backward pass; weights, optimizers and loss are float32. auto: bfloat16 on a GPU."""
    start: str = ""
    """A finished base of the same shape whose weights it starts from, by built-in name or folder; empty: none."""
    seed: int = 0

    @property
    def steps(self) -> int:
        return self.samples // self.batch_size

    def rate(self, step: int, over: float = 0.0) -> float:
        """Learning rate of a step; ``over``: how much of the run is over by the clock, where that is what ends it."""
        left = (1 - max(over, step / self.steps)) / max(1 / self.steps, self.decay)
        return self.learning_rate * min(1.0, (step + 1) / self.warmup, left)


def optimizers(named: dict[str, Tensor], learning_rate: float, dtype: torch.dtype) -> list[torch.optim.Optimizer]:
    """Muon, in ``dtype``, for the matrices inside blocks, AdamW for all else.

    The first edition's ``tiny-flux`` after 14,400 pictures: loss 0.463 against 0.472 with AdamW alone, falling faster.
    """
    inner = {name: p for name, p in named.items() if "block" in name and p.ndim == 2 and min(p.shape) >= 32}
    rest = [p for name, p in named.items() if name not in inner]
    return [
        Muon(inner.values(), lr=learning_rate, weight_decay=0.01, dtype=dtype),
        torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True),
    ]


def finished(start: str) -> Path:
    """Folder of the base that a run starts from."""
    return BASES / start if (BASES / start).is_dir() else Path(start)


class Run:
    """All that changes while training, and how it is kept."""

    def __init__(self, base: str, settings: Pretraining, device: str) -> None:
        if settings.dtype == "auto":
            settings = replace(settings, dtype="float32" if device == "cpu" else "bfloat16")
        self.base, self.settings, self.device, self.step = base, settings, device, 0
        self.training_set = ""  # digest of the training set
        self.dtype = getattr(torch, settings.dtype)
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
        self.weights: dict[str, Tensor] = dict(self.model.named_parameters())
        if self.dtype != torch.float32:
            self.weights = {name: p.detach().clone().requires_grad_() for name, p in self.weights.items()}
            for p in self.model.parameters():  # buffers stay: positions want float32
                p.data = p.data.to(self.dtype)
        self.optimizers = optimizers(self.weights, settings.learning_rate, self.dtype)

    def _start_from(self, folder: Path) -> None:
        base = type(self.pipe).from_pretrained(folder, torch_dtype=torch.float32)
        for name, part in base.components.items():
            if isinstance(part, nn.Module):
                getattr(self.pipe, name).load_state_dict(part.state_dict())

    def save(self, path: Path) -> None:
        state = {
            "step": self.step,
            "model": self.state(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "settings": asdict(self.settings),
            "training_set": self.training_set,
        }
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises: ValueError: it was made with other settings, drawings or another number type than this run has.
        """
        state = torch.load(path, map_location=self.device, weights_only=True)
        told, own = (
            {**x, "training_set": y}
            for x, y in ((state["settings"], state["training_set"]), (asdict(self.settings), self.training_set))
        )
        for name, value in own.items():
            if name not in MAY_CHANGE and told.get(name) != value:
                raise ValueError(
                    f"{path} was made with {name} {told.get(name)!r}, this run has {value!r}: "
                    "give the same, or another folder with --run"
                )
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        for name, weight in self.weights.items():
            weight.data.copy_(state["model"][name])
        self.average = state["average"]
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)

    def state(self) -> dict[str, Tensor]:
        """The model's state with its weights in float32, tied ones under each of their names."""
        first = {id(p): name for name, p in self.model.named_parameters()}
        every = self.model.named_parameters(remove_duplicate=False)
        return {**self.model.state_dict(), **{name: self.weights[first[id(p)]].detach() for name, p in every}}

    def update(self) -> None:
        """One step of both optimizers on float32 weights, whatever the dtype of the pass, then of their average."""
        apart = self.dtype != torch.float32
        if apart:
            for name, p in self.model.named_parameters():
                if p.grad is not None:
                    self.weights[name].grad = p.grad.to(torch.float32)
                    p.grad = None
        nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if apart:
            with torch.no_grad():
                torch._foreach_copy_(list(self.model.parameters()), list(self.weights.values()))
        weight = 1 - min(self.settings.average, (self.step + 1) / (self.step + 10))
        state = self.state()
        torch._foreach_lerp_(list(self.average.values()), [state[name] for name in self.average], weight)

    def averaged_pipeline(self) -> Any:
        """The pipeline with the averaged weights in place of the last ones, ready to sample or to save."""
        self.model.float().load_state_dict(self.average)
        self.model.eval().requires_grad_(False)
        return self.pipe


@dataclass(frozen=True)
class Batch:
    """What one step shows, before it is noised."""

    rows: Tensor
    """(b,) of the training set."""
    tokens: Tokens
    """What the text encoders read."""
    time: Tensor
    """(b,) as the model reads it."""


def draw_batch(run: Run, data: TrainingSet, step: int) -> Batch:
    """The batch of a step: a function of the seed and the step alone."""
    generator = torch.Generator().manual_seed(run.settings.seed * 1_000_003 + step)
    rows = data.choose(run.settings.batch_size, generator)
    captions = [training_caption(*data.named(row), generator) for row in rows.tolist()]
    return Batch(rows, BLUEPRINTS[run.base].tokenize(run.pipe, captions), run.noising.sample_time(len(rows), generator))


def loss_of_step(run: Run, data: TrainingSet, batch: Batch) -> Tensor:
    """The family's own training loss on one batch, the text encoders within its gradient."""
    clean = data.latents[batch.rows.to(data.latents.device)].to(run.device).float()
    seeded = torch.Generator(run.device).manual_seed(run.settings.seed * 1_000_003 + run.step)
    noise = torch.randn(clean.shape, generator=seeded, device=run.device)
    tokens = {name: x.to(run.device, non_blocking=True) for name, x in batch.tokens.items()}
    condition = Condition(BLUEPRINTS[run.base].encode(run.pipe, tokens))
    model = getattr(run.pipe, run.family.part)
    return denoising_loss(run.family.predict, model, run.noising, clean, noise, batch.time, condition)


def step(run: Run, data: TrainingSet, batch: Batch, over: float = 0.0) -> Tensor:
    """One update of weights and average; the loss."""
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = run.settings.rate(run.step, over)
    loss = loss_of_step(run, data, batch)
    loss.backward()
    run.update()
    run.step += 1
    return loss.detach()
