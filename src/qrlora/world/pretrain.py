"""Pre-train a built-in base on the synthetic world: ``python -m qrlora.world.pretrain tiny-sd3``.

The learning rate is constant and decays linearly to zero at the end, so that a run can be lengthened later from the
checkpoint ``plateau.pt``, which is written where the decay starts.  Every step samples its batch, timesteps and noise
from its own generator, seeded by the step: a run that was killed and resumed equals one that was not, bit for bit on
CPU.
"""

import argparse
import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ..output_files import check_writable
from .base_architectures import ARCHITECTURES
from .base_export import export_base
from .command_line import DEVICES, EXCERPT, at_least, available_device, positive, run_command
from .drawings import KNOWN_HANDS, check_full_sheets
from .model_folders import check_replaceable
from .pretraining_checkpoint import read_checkpoint
from .pretraining_log import LOG_EVERY, drop_rows_beyond, log_losses
from .pretraining_set import TrainingSet, build_training_set, load_training_set, save_training_set, training_set_digest
from .pretraining_settings import PretrainingSettings
from .pretraining_state import Batch, PretrainingRun, sample_batch, training_step

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


def set_training_set(run: PretrainingRun, excerpt: bool) -> None:
    """Note in a run which images it is trained on.

    Args:   excerpt: whether the shipped excerpt of the drawings will do.
    Raises: FileNotFoundError: it is what is here, and will not do.
    """
    if not excerpt:
        check_full_sheets(KNOWN_HANDS)
    run.training_set = training_set_digest(run.pipe.vae, *training_set_counts(run.settings))


def training_set_counts(settings: PretrainingSettings) -> tuple[int, int, int]:
    """What of the settings a training set is made by: the counts of two kinds of images, and the seed."""
    return settings.styled_hands, settings.random, settings.seed


def load_or_build_training_set(run: PretrainingRun, path: Path) -> TrainingSet:
    """The run's training set, read from its file, or built and written to it."""
    if path.exists():
        return load_training_set(path, run.training_set, run.device)
    check_writable(path)
    data = build_training_set(run.pipe.vae, *training_set_counts(run.settings), run.device)
    save_training_set(path, data, run.training_set)
    return data


def begin_or_resume(
    base: str, folder: Path, settings: PretrainingSettings, device: str, excerpt: bool
) -> PretrainingRun:
    """A run at its first step, or where the folder's ``last.pt`` left it; its log as it was then."""
    last = folder / "last.pt"
    if last.exists() and settings.dtype == "auto":  # whatever the machine that goes on would have chosen
        settings = replace(settings, dtype=read_checkpoint(last)["settings"].get("dtype", "auto"))
    run = PretrainingRun(base, settings, device)
    set_training_set(run, excerpt)
    if last.exists():
        run.load(last)
    drop_rows_beyond(folder / "log.jsonl", run.step)
    return run


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Context manager in which no other process pre-trains in a run's folder. Raises OSError: one does already."""
    lock = FileLock(folder / "run.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise OSError(f"{folder} is in use by another pre-training: wait for it, or give another --run") from None
    try:
        yield
    finally:
        lock.release()


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
    excerpt: bool = False,
) -> PretrainingRun:
    """Pre-train until all samples are used or ``minutes`` are over; resumes from ``folder/last.pt`` if it exists.

    Args: every: steps between checkpoints.  keep: steps between permanent checkpoints, ``step-N.pt``, for
          `base_scores.learning_curve_scores`; 0: none.  workers: processes that prepare batches; 0: this one.
          latents: file of the training set; default: in the folder.
          within: minutes, of all calls together, after which the run ends, its learning rate decaying by the clock;
          such a run cannot be repeated to the bit.  0: the run ends after all samples.
          excerpt: whether the shipped excerpt of the drawings will do where the full sheets are not here.
    Raises: ValueError, OSError: another run is in the folder, or another process at work in it; no drawings.
    """
    begun = time.monotonic()
    run = begin_or_resume(base, folder, settings, device, excerpt)
    data = load_or_build_training_set(run, latents or folder / "pretraining_set.safetensors")
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder):
        start, first, over_before = time.monotonic(), run.step, run.over
        plateau = int((1 - run.settings.decay) * run.settings.steps)
        prefetch: dict[str, Any] = {"prefetch_factor": PREFETCHED_BATCHES} if workers else {}
        batches = iter(DataLoader(BatchDataset(run, data, run.step), None, num_workers=workers, **prefetch))
        while time.monotonic() - begun < minutes * 60:
            if within:
                run.over = min(1.0, over_before + (time.monotonic() - begun) / (60 * within))
            if run.is_over(within):
                break
            run.losses.append(training_step(run, data, next(batches), run.over if within else 0.0))
            if run.step % LOG_EVERY == 0:
                log_losses(run, (run.step - first) / (time.monotonic() - start), folder / "log.jsonl")
            if run.step == plateau:
                run.save(folder / "plateau.pt")
            if run.step % every == 0:
                run.save(folder / "last.pt")
            if keep and run.step % keep == 0:
                run.save(folder / f"step-{run.step}.pt")
        if run.losses and run.is_over(within):
            log_losses(run, (run.step - first) / (time.monotonic() - start), folder / "log.jsonl")
        if run.step > first:
            run.save(folder / "last.pt")
    return run


def command_parser() -> argparse.ArgumentParser:
    """The options of the command: those of the run, then its settings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", choices=ARCHITECTURES)
    parser.add_argument("--run", type=Path, help="folder of checkpoints; default runs/BASE")
    parser.add_argument("--output", type=Path, help="folder of the finished base; default BASE in the run's folder")
    parser.add_argument("--overwrite", action="store_true", help="replace a base that is in the output's folder")
    parser.add_argument("--device", default="cpu", choices=DEVICES, help="nothing else needs to change")
    parser.add_argument("--every", type=at_least(1), default=500, help="steps between checkpoints")
    keep = "steps between checkpoints that stay, for a learning curve"
    parser.add_argument("--keep", type=at_least(0), default=0, help=keep)
    minutes = "stop after so long, without writing the base; go on by calling again"
    parser.add_argument("--minutes", type=positive, default=float("inf"), help=minutes)
    parser.add_argument("--workers", type=at_least(0), default=0, help="processes that prepare batches")
    parser.add_argument("--latents", type=Path, help="file of the training set; default in the run's folder")
    parser.add_argument("--within", type=positive, default=0.0, help="minutes after which the run ends, decayed to 0")
    parser.add_argument("--excerpt", action="store_true", help=EXCERPT)
    for name, value in asdict(PretrainingSettings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    return parser


def pretrain_and_export(options: argparse.Namespace) -> None:
    """What the command does: pre-train, and write the base if that has come to its end."""
    given, settings = vars(options), {field.name for field in fields(PretrainingSettings)}
    folder = options.run or Path("runs") / options.base
    output = options.output or folder / options.base
    if output.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise ValueError(
            f"{output} holds the run's checkpoints, and a base is a folder of its own: give another --output"
        )
    check_replaceable(output, options.overwrite)
    names = ("every", "minutes", "keep", "workers", "latents", "within", "excerpt")
    run = pretrain(
        options.base,
        folder,
        PretrainingSettings(**{name: given[name] for name in settings}),
        available_device(options.device),
        **{name: given[name] for name in names},
    )
    if not run.is_over(options.within):
        print(f"stopped after step {run.step} of {run.settings.steps}, nothing is written: the same command goes on")
        return
    export_base(run, folder / "log.jsonl", output, options.within, options.overwrite)
    print(output)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command that pre-trains a built-in base."""
    run_command(pretrain_and_export, command_parser(), arguments)


if __name__ == "__main__":
    main()
