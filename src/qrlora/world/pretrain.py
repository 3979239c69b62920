"""Pre-train a built-in base on the synthetic world: ``python -m qrlora.world.pretrain tiny-sd3``.

The learning rate is constant and decays linearly to zero at the end, so that a run can be lengthened later from the
checkpoint ``plateau.pt``, which is written where the decay starts.  Every step samples its batch, timesteps and noise
from its own generator, seeded by the step: a run that was killed and resumed equals one that was not, bit for bit on
CPU.
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
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers.utils import logging

from ..built_in_bases import folder_of
from ..text_files import write_text
from .base_architectures import ARCHITECTURES
from .pretraining_set import TrainingSet, build_training_set, load_training_set, save_training_set, training_set_digest
from .pretraining_state import (
    Batch,
    PretrainingRun,
    PretrainingSettings,
    sample_batch,
    trained_base_folder,
    training_step,
)

PREFETCHED_BATCHES = 4
"""Batches that each worker prepares ahead while the device computes."""


class BatchDataset(IterableDataset):
    """The batches of all steps from `first` on; several workers take turns."""

    def __init__(self, run: PretrainingRun, data: TrainingSet, first: int) -> None:
        rows = replace(data, latents=data.latents[:0])  # workers sample rows; the latents stay on the device
        self.run, self.data, self.first = run, rows, first

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the pre-training steps that are left, for this worker of the data loader."""
        worker = get_worker_info()
        start, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for number in range(self.first + start, self.run.settings.steps, stride):
            yield sample_batch(self.run, self.data, number)


def load_or_build_training_set(run: PretrainingRun, path: Path) -> TrainingSet:
    """The run's training set, read from its file, or built and written to it."""
    settings = run.settings
    source = (run.pipe.vae, settings.styled_hands, settings.random, settings.seed)
    run.training_set = training_set_digest(*source)
    if path.exists():
        return load_training_set(path, run.training_set, run.device)
    data = build_training_set(*source, run.device)
    temporary = path.with_suffix(".partial")
    save_training_set(temporary, data, run.training_set)
    temporary.rename(path)
    return data


def pretrain(
    base: str,
    folder: Path,
    settings: PretrainingSettings,
    device: str,
    every: int,
    minutes: float,
    keep: int = 0,
    workers: int = 0,
    latents: Path | None = None,
    within: float = 0.0,
) -> PretrainingRun:
    """Pre-train until all samples are used or ``minutes`` are over; resumes from ``folder/last.pt`` if it exists.

    Args: every: steps between checkpoints.  keep: steps between permanent checkpoints, ``step-N.pt``, for
          `base_scores.learning_curve_scores`; 0: none.  workers: processes that prepare batches; 0: this one.
          latents: file of the training set; default: in the folder.
          within: minutes after which the run ends, its learning rate decaying by the clock; such a run cannot be
          repeated to the bit.  0: the run ends after all samples.
    """
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    run = PretrainingRun(base, settings, device)
    data = load_or_build_training_set(run, latents or folder / "pretraining_set.safetensors")
    if (folder / "last.pt").exists():
        run.load(folder / "last.pt")
    start, started_at, losses = time.monotonic(), run.step, []
    plateau = int((1 - run.settings.decay) * run.settings.steps)
    prefetch: dict[str, Any] = {"prefetch_factor": PREFETCHED_BATCHES} if workers else {}
    batches = iter(DataLoader(BatchDataset(run, data, run.step), None, num_workers=workers, **prefetch))
    while run.step < run.settings.steps and time.monotonic() - begun < minutes * 60:
        over = (time.monotonic() - begun) / (60 * within) if within else 0.0
        if over >= 1:
            break
        losses.append(training_step(run, data, next(batches), over))
        if run.step % 50 == 0:
            log_losses(run, losses, (run.step - started_at) / (time.monotonic() - start), folder)
            losses.clear()
        if run.step == plateau:
            run.save(folder / "plateau.pt")
        if run.step % every == 0:
            run.save(folder / "last.pt")
        if keep and run.step % keep == 0:
            run.save(folder / f"step-{run.step}.pt")
    if losses:  # a run of fewer than 50 steps has a log, too: `export_base` reads it
        log_losses(run, losses, (run.step - started_at) / (time.monotonic() - start), folder)
    if run.step > started_at:
        run.save(folder / "last.pt")
    return run


def log_losses(run: PretrainingRun, losses: list[Tensor], steps_per_second: float, folder: Path) -> None:
    """Write and print a row of ``log.jsonl``: the mean of the latest losses of pre-training, and its speed.

    Raises: ValueError: the loss is no finite number.
    """
    mean, batch_size = float(torch.stack(losses).mean()), run.settings.batch_size
    if not mean < float("inf"):
        raise ValueError(f"the loss is {mean} at step {run.step}; start again with a lower --learning-rate")
    left = (run.settings.steps - run.step) / steps_per_second / 60
    row = {"step": run.step, "samples": run.step * batch_size, "loss": round(mean, 4)}
    row |= {"samples_per_second": round(steps_per_second * batch_size, 1), "minutes_left": round(left, 1)}
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps(row) + "\n")
    print(row, flush=True)


def write_pipeline(run: PretrainingRun, folder: Path) -> None:
    """Write the pre-trained base with averaged weights as a stock pipeline's folder, in float16.

    Nothing of the run is in it: no path of where its VAE was read, nor the length that captions were padded to.
    """
    pipe = run.averaged_pipeline().to("cpu")
    for component in pipe.components.values():
        if isinstance(component, nn.Module):
            component.half()
        elif tokenizer := getattr(component, "backend_tokenizer", None):
            tokenizer.no_padding()
            tokenizer.no_truncation()
    logging.disable_progress_bar()
    pipe.save_pretrained(folder)
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        if path.parent.name.startswith("text_encoder"):  # transformers opens in the dtype that is written here
            config["dtype"] = "float32"
        write_text(path, json.dumps(config, indent=2) + "\n")


def device_name(device: str) -> str:
    return f"{os.cpu_count()} cores" if device == "cpu" else torch.cuda.get_device_name(device)


def export_base(run: PretrainingRun, log: Path, folder: Path, within: float = 0.0) -> None:
    """Write the pre-trained base with averaged weights, and ``training.json`` for its model card.

    The latter holds the run's settings and loss curve; if it started from a trained base, also that base's
    ``training.json``, under "before".  Args: log: the run's ``log.jsonl``.  within: as of `pretrain`.
    """
    start = run.settings.start
    before = {"before": json.loads((trained_base_folder(start) / "training.json").read_text())} if start else {}
    write_pipeline(run, folder)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    hours = rows[-1]["samples"] / median(row["samples_per_second"] for row in rows) / 3600
    record = {
        "settings": asdict(run.settings) | {"start": Path(start).name},
        **({"within": within} if within else {}),
        "optimizer": " and ".join(type(optimizer).__name__ for optimizer in run.optimizers),
        "machine": f"on {device_name(run.device)}, about {hours:.2g} hours.",
        "shown": run.step * run.settings.batch_size,
        "loss": [[r["samples"], r["loss"]] for r in rows[:: max(1, len(rows) // 12)]],
        **before,
    }
    write_text(folder / "training.json", json.dumps(record) + "\n")


def main() -> None:
    """The command that pre-trains a built-in base."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", choices=ARCHITECTURES)
    parser.add_argument("--run", type=Path, help="folder of checkpoints; default runs/BASE")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; nothing else needs to change")
    parser.add_argument("--every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--keep", type=int, default=0, help="steps between checkpoints that stay, for a learning curve")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop after so long; go on by calling again"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare batches")
    parser.add_argument("--latents", type=Path, help="file of the training set; default in the run's folder")
    parser.add_argument("--within", type=float, default=0.0, help="minutes after which the run ends, decayed to 0")
    for name, value in asdict(PretrainingSettings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    args = vars(parser.parse_args())
    base, folder = args.pop("base"), args.pop("run")
    names = ("device", "every", "minutes", "keep", "workers", "latents", "within")
    options = {name: args.pop(name) for name in names}
    folder = folder or Path("runs") / base
    run = pretrain(base, folder, PretrainingSettings(**args), **options)
    if run.step >= run.settings.steps or options["within"]:
        export_base(run, folder / "log.jsonl", folder_of(base), options["within"])


if __name__ == "__main__":
    main()
