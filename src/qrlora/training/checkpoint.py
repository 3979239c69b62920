"""Checkpoints of a training run: it resumes as if it had never stopped, bit for bit."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..safetensors_files import read_metadata, read_safetensors, write_safetensors
from ..temporary_files import remove_stale
from .distributed import is_rank_zero
from .loss_scale import LossScale
from .optimizers import linear_decay
from .trainable_adapter import TrainableAdapter

CHECKPOINT_FILE = "state.safetensors"
METADATA_TYPES = {"step": int, "steps": int, "run": dict, "circumstances": dict, "start": dict, "optimizer": dict}
METADATA_TYPES |= {"tensors": int, "loss scale": dict}
"""Entry of a checkpoint's metadata, in JSON -> its type."""


@dataclass(frozen=True)
class Checkpoint:
    """A run's state in memory, and the folder that its checkpoint is written to."""

    folder: Path
    identity: Mapping[str, Any]
    """Must be equal for a checkpoint on disk to be resumed, see `run_identity`."""
    circumstances: Mapping[str, Any]
    """May differ, with a warning: changes rounding only, see `numeric_environment`."""
    steps: int
    """Total updates."""
    lr_decay: float
    """Fraction of them, at the end, over which the learning rate falls."""
    adapter: TrainableAdapter
    """The whole adapter is stored: another device would compute other frozen directions in the same span."""
    generator: torch.Generator
    failures: list[OSError] = field(default_factory=list)
    """Why checkpoints could not be written."""

    def save(self, step: int, optimizer: torch.optim.Optimizer, scale: LossScale) -> bool:
        """Write a checkpoint after an update, atomically. If that fails, as on a full disk, the last one stays, the
        first failure is a warning, and training continues: it may well end before a checkpoint is needed.

        Returns: whether it was written.
        """
        tensors, numbers = {"generator": self.generator.get_state()}, {}
        for key, tensor in self.adapter.frozen.items():
            tensors[f"frozen {key}"] = tensor.detach()
        for key, parameter in self.adapter.factors.items():
            tensors[f"factor {key}"] = parameter.detach()
            for what, value in optimizer.state[parameter].items():
                (tensors if isinstance(value, Tensor) else numbers)[f"{what} {key}"] = value
        for what, value in optimizer.param_groups[0].items():  # prodigy keeps its estimated step size here
            if type(value) in (int, float):
                numbers[what] = value
        metadata = {"step": step, "steps": self.steps, "run": self.identity, "circumstances": self.circumstances}
        metadata |= {"start": self.adapter.start, "optimizer": numbers, "tensors": len(tensors)}
        metadata["loss scale"] = scale.state_dict()
        try:
            write_safetensors(
                self.folder / CHECKPOINT_FILE,
                tensors,
                {key: json.dumps(metadata[key], sort_keys=True) for key in METADATA_TYPES},
            )
        except OSError as error:
            if not self.failures:
                lacks = f"no checkpoint of step {step} ({error.strerror or error})"
                warnings.warn(f"{self.folder / CHECKPOINT_FILE}: {lacks}; the training goes on", stacklevel=2)
            self.failures.append(error)
            return False
        return True

    def resume(self, optimizer: torch.optim.Optimizer, scale: LossScale) -> int:
        """Load the checkpoint, if there is one; a warning if it was written in another numeric environment.

        Returns: the updates already done; 0 without a checkpoint.
        Raises:  ValueError: the folder holds another run's checkpoint, one beyond `steps`, or a damaged file.
        """
        path = self.folder / CHECKPOINT_FILE
        if not path.is_file():
            return 0
        metadata = _read_metadata(path)
        if change := _why_another_run(metadata, self.identity, self.steps, self.lr_decay):
            raise ValueError(f"{self.folder} holds the checkpoint of another run ({change}): {_hint(path)}")
        if metadata["step"] > self.steps:
            longer = f"step {metadata['step']} of a longer run than steps={self.steps}"
            raise ValueError(f"{self.folder} holds {longer}: {_hint(path)}")
        tensors, _ = read_safetensors(path)
        self._check_tensors(path, tensors, metadata["tensors"])
        try:
            scale.load_state_dict(metadata["loss scale"])
        except KeyError as error:
            raise _damaged_error(path, f"the loss scale lacks {error}") from error
        self._load_tensors(tensors, metadata["optimizer"], optimizer)
        if is_rank_zero() and (changes := _changed_entries(metadata["circumstances"], self.circumstances)):
            found = "; ".join(changes)
            warnings.warn(f"goes on from {self.folder}, begun elsewhere ({found}): equal to rounding", stacklevel=2)
        self.adapter.start.update(metadata["start"])
        self.adapter.reload()
        return metadata["step"]

    def remove(self) -> None:
        """Delete this run's checkpoint, see `remove_checkpoint`."""
        remove_checkpoint(self.folder, self.identity, self.steps, self.lr_decay)

    def _check_tensors(self, path: Path, tensors: Mapping[str, Tensor], count: int) -> None:
        """Raises ValueError: a tensor of the checkpoint is missing, or of another shape."""
        tensors_here = {"factor": self.adapter.factors, "frozen": self.adapter.frozen}
        wanted = {f"{kind} {key}": x.shape for kind, named in tensors_here.items() for key, x in named.items()}
        for name, shape in {**wanted, "generator": self.generator.get_state().shape}.items():
            if name not in tensors or tensors[name].shape != shape:
                raise _damaged_error(path, f"{name} is missing or of another shape")
        if len(tensors) != count:
            raise _damaged_error(path, f"{len(tensors)} tensors, not {count}")

    def _load_tensors(self, tensors: dict[str, Tensor], numbers: Mapping[str, Any], optimizer: Any) -> None:
        """Copy a checkpoint's tensors into the adapter, the optimizer and the generators."""
        self.generator.set_state(tensors.pop("generator").clone())
        for key, value in {**tensors, **numbers}.items():
            what, _, name = key.partition(" ")
            if not name:
                optimizer.param_groups[0][what] = value
            elif what in ("factor", "frozen"):
                target = self.adapter.factors[name] if what == "factor" else self.adapter.frozen[name]
                target.data.copy_(value)
            else:
                factor = self.adapter.factors[name]
                optimizer.state[factor][what] = value.clone().to(factor.device) if isinstance(value, Tensor) else value


def remove_checkpoint(folder: Path, identity: Mapping[str, Any], steps: int, lr_decay: float) -> None:
    """Delete a finished run's checkpoint, and its folder if that is then empty. A damaged one, or one that cannot be
    deleted, stays, with a warning: the adapter is written."""
    path = folder / CHECKPOINT_FILE
    try:
        if path.is_file() and not _why_another_run(_read_metadata(path), identity, steps, lr_decay):
            path.unlink()
        if folder.is_dir():
            remove_stale(folder)
            if not any(folder.iterdir()):
                folder.rmdir()
    except (OSError, ValueError) as error:
        warnings.warn(f"the run is done, but what is in {folder} stays: {error}", stacklevel=3)


def _why_another_run(metadata: Mapping[str, Any], identity: Mapping[str, Any], steps: int, lr_decay: float) -> str:
    """The first difference by which a checkpoint belongs to another run than this one; "" if it can be resumed."""
    if changes := _changed_entries(metadata["run"], json.loads(json.dumps(identity))):
        return changes[0]
    step, then = metadata["step"], metadata["steps"]
    if any(linear_decay(k, then, lr_decay) != linear_decay(k, steps, lr_decay) for k in range(1, min(step, steps) + 1)):
        return f"steps was {then}, is {steps}, and by step {step} the learning rate fell"
    return ""


def _read_metadata(path: Path) -> dict[str, Any]:
    """A checkpoint's metadata, decoded. Raises ValueError: damaged, or of another version."""
    try:
        entries = read_metadata(path)
        metadata = {key: json.loads(entries[key]) for key in METADATA_TYPES}
    except (KeyError, ValueError, RecursionError) as error:
        raise _damaged_error(path, error) from error
    for key, kind in METADATA_TYPES.items():
        if type(metadata[key]) is not kind:
            raise _damaged_error(path, f"{key} is {str(metadata[key])[:80]}")
    return metadata


def _damaged_error(path: Path, why: object) -> ValueError:
    return ValueError(f"{path} is no whole checkpoint of this version ({why}): {_hint(path)}")


def _hint(path: Path) -> str:
    return f"delete {path.parent} or choose another checkpoint_dir"


def _changed_entries(stored: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """ "rank was 4, is 3" for each entry that differs."""
    keys = [key for key in {**current, **stored} if stored.get(key) != current.get(key)]
    return [f"{key} was {stored.get(key)!r}, is {current.get(key)!r}" for key in keys]
