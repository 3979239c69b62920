"""A run's state on disk: enough to go on as if it had never stopped, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..storage import read, write
from .loss_scale import LossScale

FILE = "state.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """What a run is made of, and the folder where its state is kept."""

    folder: Path
    identity: Mapping[str, Any]
    """What must be equal for a state on disk to be this run's."""
    factors: Mapping[str, nn.Parameter]
    """What learns, by name."""
    optimizer: torch.optim.Optimizer
    scale: LossScale
    generator: torch.Generator

    def save(self, step: int) -> None:
        """Write the state after an update, whole or not at all.

        Raises: OSError: the disk is full or the folder cannot be written; the last state stays.
        """
        tensors, numbers = {"generator": self.generator.get_state()}, {}
        for key, parameter in self.factors.items():
            tensors[f"factor {key}"] = parameter.detach()
            for what, value in self.optimizer.state[parameter].items():
                (tensors if isinstance(value, torch.Tensor) else numbers)[f"{what} {key}"] = value
        for what, value in self.optimizer.param_groups[0].items():  # prodigy keeps the step that it has found here
            if type(value) in (int, float):
                numbers[what] = value
        metadata = {"step": step, "run": self.identity, "optimizer": numbers, "loss scale": self.scale.state()}
        write(self.folder / FILE, tensors, {key: json.dumps(x, sort_keys=True) for key, x in metadata.items()})

    def resume(self, steps: int) -> int:
        """Put the state on disk back, if there is one.

        Returns: the updates already done; 0 for a fresh run.
        Raises:  ValueError: the folder holds another run's state, a later one than `steps`, or a damaged file.
        """
        path = self.folder / FILE
        if not path.is_file():
            return 0
        tensors, metadata = read(path)
        way_out = f"delete {self.folder} or choose another checkpoint_dir"
        theirs, ours = json.loads(metadata.get("run", "{}")), json.loads(json.dumps(self.identity))
        for key in {**ours, **theirs}:
            if theirs.get(key) != ours.get(key):
                change = f"{key} was {theirs.get(key)!r}, is {ours.get(key)!r}"
                raise ValueError(f"{self.folder} holds the checkpoint of another run ({change}): {way_out}")
        step = int(metadata["step"])
        if step > steps:
            raise ValueError(f"{self.folder} holds step {step} of a longer run than steps={steps}: {way_out}")
        try:
            self.scale.put_back(json.loads(metadata.get("loss scale", "{}")))
        except KeyError as error:
            raise ValueError(f"{self.folder} holds the checkpoint of a run without loss scaling: {way_out}") from error
        self.generator.set_state(tensors.pop("generator").clone())
        for key, value in {**tensors, **json.loads(metadata["optimizer"])}.items():
            what, _, factor = key.partition(" ")
            if not factor:
                self.optimizer.param_groups[0][what] = value
            elif what == "factor":
                self.factors[factor].data.copy_(value)
            else:
                moved = value.clone().to(self.factors[factor].device) if isinstance(value, torch.Tensor) else value
                self.optimizer.state[self.factors[factor]][what] = moved
        return step

    @staticmethod
    def remove(folder: Path) -> None:
        """Delete the state of a run that is done, and the folder if nothing else is in it."""
        (folder / FILE).unlink(missing_ok=True)
        if folder.is_dir() and not any(folder.iterdir()):
            shutil.rmtree(folder)
