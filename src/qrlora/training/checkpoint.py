"""A run's state on disk: enough to go on as if it had never stopped, bit for bit."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..safetensors_files import read, read_metadata, write
from ..temporary_files import clear
from .distributed import is_rank_zero
from .loss_scale import LossScale
from .optimizers import linear_decay
from .trainable_adapter import TrainableAdapter

FILE = "state.safetensors"
ENTRIES = {"step": int, "steps": int, "run": dict, "circumstances": dict, "start": dict, "optimizer": dict}
ENTRIES |= {"tensors": int, "loss scale": dict}
"""What a state's metadata holds, each as JSON."""


@dataclass(frozen=True)
class Checkpoint:
    """What a run is made of, and the folder where its state is kept."""

    folder: Path
    identity: Mapping[str, Any]
    """What must be equal for a state on disk to be this run's."""
    circumstances: Mapping[str, Any]
    """What changes the last digits only."""
    steps: int
    """Updates in all."""
    decay: float
    """Part of them over which the learning rate falls."""
    learner: TrainableAdapter
    """What learns, and the rest of the adapter: elsewhere others of its span are found, so that a state holds it."""
    generator: torch.Generator
    failures: list[OSError] = field(default_factory=list)
    """Why states could not be written."""

    def save(self, step: int, optimizer: torch.optim.Optimizer, scale: LossScale) -> bool:
        """Write the state after an update, whole or not at all. Where that is impossible, as on a full disk, the last
        one stays, and the first time a warning says so: the run may well end before anybody needs another.

        Returns: whether it is on disk.
        """
        tensors, numbers = {"generator": self.generator.get_state()}, {}
        for key, tensor in self.learner.frozen.items():
            tensors[f"frozen {key}"] = tensor.detach()
        for key, parameter in self.learner.factors.items():
            tensors[f"factor {key}"] = parameter.detach()
            for what, value in optimizer.state[parameter].items():
                (tensors if isinstance(value, Tensor) else numbers)[f"{what} {key}"] = value
        for what, value in optimizer.param_groups[0].items():  # prodigy keeps the step that it has found here
            if type(value) in (int, float):
                numbers[what] = value
        told = {"step": step, "steps": self.steps, "run": self.identity, "circumstances": self.circumstances}
        told |= {"start": self.learner.start, "optimizer": numbers, "tensors": len(tensors)}
        told["loss scale"] = scale.state()
        try:
            write(self.folder / FILE, tensors, {key: json.dumps(told[key], sort_keys=True) for key in ENTRIES})
        except OSError as error:
            if not self.failures:
                lacks = f"no checkpoint of step {step} ({error.strerror or error})"
                warnings.warn(f"{self.folder / FILE}: {lacks}; the training goes on", stacklevel=2)
            self.failures.append(error)
            return False
        return True

    def resume(self, optimizer: torch.optim.Optimizer, scale: LossScale) -> int:
        """Put the state on disk back, if there is one. A warning tells of other circumstances.

        Returns: the updates already done; 0 for a fresh run.
        Raises:  ValueError: the folder holds another run's state, a later one than `steps`, or a damaged file.
        """
        path = self.folder / FILE
        if not path.is_file():
            return 0
        told = _told(path)
        if change := _difference(told, self.identity, self.steps, self.decay):
            raise ValueError(f"{self.folder} holds the checkpoint of another run ({change}): {_way_out(path)}")
        if told["step"] > self.steps:
            longer = f"step {told['step']} of a longer run than steps={self.steps}"
            raise ValueError(f"{self.folder} holds {longer}: {_way_out(path)}")
        tensors, _ = read(path)
        self._check(path, tensors, told["tensors"])
        try:
            scale.put_back(told["loss scale"])
        except KeyError as error:
            raise _damaged(path, f"the loss scale lacks {error}") from error
        self._put_back(tensors, told["optimizer"], optimizer)
        if is_rank_zero() and (changes := _changes(told["circumstances"], self.circumstances)):
            found = "; ".join(changes)
            warnings.warn(f"goes on from {self.folder}, begun elsewhere ({found}): equal to rounding", stacklevel=2)
        self.learner.start.update(told["start"])
        self.learner.refresh()
        return told["step"]

    def remove(self) -> None:
        """Delete this run's state, see `remove`."""
        remove(self.folder, self.identity, self.steps, self.decay)

    def _check(self, path: Path, tensors: Mapping[str, Tensor], count: int) -> None:
        """Raises ValueError: a tensor is missing, or of another shape."""
        kept = {"factor": self.learner.factors, "frozen": self.learner.frozen}
        wanted = {f"{kind} {key}": x.shape for kind, own in kept.items() for key, x in own.items()}
        for name, shape in {**wanted, "generator": self.generator.get_state().shape}.items():
            if name not in tensors or tensors[name].shape != shape:
                raise _damaged(path, f"{name} is missing or of another shape")
        if len(tensors) != count:
            raise _damaged(path, f"{len(tensors)} tensors, not {count}")

    def _put_back(self, tensors: dict[str, Tensor], numbers: Mapping[str, Any], optimizer: Any) -> None:
        self.generator.set_state(tensors.pop("generator").clone())
        for key, value in {**tensors, **numbers}.items():
            what, _, name = key.partition(" ")
            if not name:
                optimizer.param_groups[0][what] = value
            elif what in ("factor", "frozen"):
                own = self.learner.factors[name] if what == "factor" else self.learner.frozen[name]
                own.data.copy_(value)
            else:
                factor = self.learner.factors[name]
                optimizer.state[factor][what] = value.clone().to(factor.device) if isinstance(value, Tensor) else value


def remove(folder: Path, identity: Mapping[str, Any], steps: int, decay: float) -> None:
    """Delete a run's state, once the run is done, and the folder if nothing else is in it. A state that is damaged, or
    cannot be removed, stays, with a warning: the adapter is written."""
    path = folder / FILE
    try:
        if path.is_file() and not _difference(_told(path), identity, steps, decay):
            path.unlink()
        if folder.is_dir():
            clear(folder)
            if not any(folder.iterdir()):
                folder.rmdir()
    except (OSError, ValueError) as error:
        warnings.warn(f"the run is done, but what is in {folder} stays: {error}", stacklevel=3)


def _difference(told: Mapping[str, Any], identity: Mapping[str, Any], steps: int, decay: float) -> str:
    """Why the run that wrote this is not repeated by another up to its step, in a few words; "" if it is."""
    if changes := _changes(told["run"], json.loads(json.dumps(identity))):
        return changes[0]
    step, then = told["step"], told["steps"]
    if any(linear_decay(k, then, decay) != linear_decay(k, steps, decay) for k in range(1, min(step, steps) + 1)):
        return f"steps was {then}, is {steps}, and by step {step} the learning rate fell"
    return ""


def _told(path: Path) -> dict[str, Any]:
    """A state's metadata. Raises ValueError: it is no state of this version."""
    try:
        metadata = read_metadata(path)
        told = {key: json.loads(metadata[key]) for key in ENTRIES}
    except (KeyError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    for key, kind in ENTRIES.items():
        if type(told[key]) is not kind:
            raise _damaged(path, f"{key} is {str(told[key])[:80]}")
    return told


def _damaged(path: Path, why: object) -> ValueError:
    return ValueError(f"{path} is no whole checkpoint of this version ({why}): {_way_out(path)}")


def _way_out(path: Path) -> str:
    return f"delete {path.parent} or choose another checkpoint_dir"


def _changes(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """ "rank was 4, is 3" for each entry that differs."""
    keys = [key for key in {**ours, **theirs} if theirs.get(key) != ours.get(key)]
    return [f"{key} was {theirs.get(key)!r}, is {ours.get(key)!r}" for key in keys]
