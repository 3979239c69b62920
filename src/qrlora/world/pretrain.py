"""Pre-train a built-in base on the synthetic world: ``python -m qrlora.world.pretrain tiny-sd3``.

The learning rate is constant and falls linearly to zero over the last part, so that a run can be lengthened later from
the checkpoint ``plateau.pt`` that is kept where the fall begins.  Every step draws its batch, times and noise from a
generator of its own, seeded by the step: a run that was killed and resumed equals one that was not, bit for bit on CPU.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers.utils import logging

from . import pretraining_set
from .base_architectures import BASES, BLUEPRINTS
from .pretraining_run import Batch, Pretraining, Run, draw_batch, finished, step
from .pretraining_set import TrainingSet

AHEAD = 4
"""Batches that are drawn while the device is busy."""


class Batches(IterableDataset):
    """The batches from a step on; several workers take turns."""

    def __init__(self, run: Run, data: TrainingSet, first: int) -> None:
        rows = replace(data, latents=data.latents[:0])  # workers choose rows; the latents stay with the device
        self.run, self.data, self.first = run, rows, first

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        start, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for number in range(self.first + start, self.run.settings.steps, stride):
            yield draw_batch(self.run, self.data, number)


def prepared_set(run: Run, path: Path) -> TrainingSet:
    """The run's training set, from its file or made now and kept there."""
    settings = run.settings
    told = (run.pipe.vae, settings.styled_hands, settings.random, settings.seed)
    run.training_set = pretraining_set.identity(*told)
    if path.exists():
        return pretraining_set.load(path, run.training_set, run.device)
    data = pretraining_set.build(*told, run.device)
    temporary = path.with_suffix(".partial")
    pretraining_set.save(temporary, data, run.training_set)
    temporary.rename(path)
    return data


def pretrain(
    base: str,
    folder: Path,
    settings: Pretraining,
    device: str,
    every: int,
    minutes: float,
    keep: int = 0,
    workers: int = 0,
    latents: Path | None = None,
    within: float = 0.0,
) -> Run:
    """Train until all samples are shown or ``minutes`` are over; goes on from ``folder/last.pt`` if there.

    Args: every: steps between checkpoints.  keep: steps between those that stay, ``step-N.pt``, for
          `score.learning_curve`; 0: none.  workers: processes that draw batches; 0: this one.
          latents: file of the training set; default: in the folder.
          within: minutes that the run ends after, its learning rate falling by the clock, as on a lent machine; it
          cannot be repeated to the bit. 0: the samples decide.
    """
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    run = Run(base, settings, device)
    data = prepared_set(run, latents or folder / "pretraining_set.safetensors")
    if (folder / "last.pt").exists():
        run.load(folder / "last.pt")
    start, started_at, losses = time.monotonic(), run.step, []
    plateau = int((1 - run.settings.decay) * run.settings.steps)
    told: dict[str, Any] = {"prefetch_factor": AHEAD} if workers else {}
    source = iter(DataLoader(Batches(run, data, run.step), None, num_workers=workers, **told))
    while run.step < run.settings.steps and time.monotonic() - begun < minutes * 60:
        over = (time.monotonic() - begun) / (60 * within) if within else 0.0
        if over >= 1:
            break
        losses.append(step(run, data, next(source), over))
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
    """The averaged base as a stock pipeline's folder in 16 bit."""
    pipe = run.averaged_pipeline().to("cpu")
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.half()
    logging.disable_progress_bar()
    pipe.save_pretrained(folder)
    for config in folder.glob("text_encoder*/config.json"):  # transformers opens in the dtype that is written here
        config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))


def machine(device: str) -> str:
    return f"{os.cpu_count()} cores" if device == "cpu" else torch.cuda.get_device_name(device)


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
        "machine": f"on {machine(run.device)}, about {hours:.2g} hours.",
        "shown": run.step * run.settings.batch_size,
        "loss": [[r["samples"], r["loss"]] for r in rows[:: max(1, len(rows) // 12)]],
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
    parser.add_argument("--workers", type=int, default=0, help="processes that draw batches while a GPU is busy")
    parser.add_argument("--latents", type=Path, help="file of the training set; default in the run's folder")
    parser.add_argument("--within", type=float, default=0.0, help="minutes after which the run ends, rates fallen to 0")
    for name, value in asdict(Pretraining()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    args = vars(parser.parse_args())
    base, folder = args.pop("base"), args.pop("run")
    told = {name: args.pop(name) for name in ("device", "every", "minutes", "keep", "workers", "latents", "within")}
    folder = folder or Path("runs") / base
    run = pretrain(base, folder, Pretraining(**args), **told)
    if run.step >= run.settings.steps or told["within"]:
        export(run, folder / "log.jsonl", BASES / base)


if __name__ == "__main__":
    main()
