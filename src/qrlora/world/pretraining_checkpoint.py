"""Checkpoints of a pre-training run: written whole, read, compared with the run before anything of it is changed."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config.type_checks import check_types
from ..output_files import atomic
from .pretraining_settings import CHANGEABLE_SETTINGS, PretrainingSettings
from .state_dicts import read_torch_file, shape_difference

WHAT = "checkpoint of pre-training"
ENTRIES = {"step": int, "model": dict, "average": dict, "optimizers": list, "settings": dict, "training_set": str}
"""What every checkpoint has, and its type; `PretrainingRun.save` writes more since, which older ones lack."""
ANOTHER_FOLDER = "give the same, or another folder with --run"


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint of pre-training, whole or not at all."""
    with atomic(path) as file:
        torch.save(state, file)


def read_checkpoint(path: Path, device: str = "cpu") -> dict[str, Any]:
    """A checkpoint of pre-training. Raises: OSError.  ValueError: it is none, or not whole."""
    state = read_torch_file(path, device, WHAT)
    if missing := [name for name, kind in ENTRIES.items() if not isinstance(state.get(name), kind)]:
        raise ValueError(f"{path} is no {WHAT}: it has no {missing[0]!r} as these have; give another file")
    return state


def settings_of(state: dict[str, Any]) -> PretrainingSettings:
    """The settings that a checkpoint was made with. Raises: ValueError: of another version."""
    check_types(PretrainingSettings, state["settings"])
    return PretrainingSettings(**state["settings"])


def check_same_run(
    path: Path, state: dict[str, Any], base: str, settings: PretrainingSettings, training_set: str
) -> None:
    """Check that a checkpoint is of the run that would go on from it.

    Raises: ValueError: it was made for another base, of other images, or with other settings.
    """
    saved_base = state.get("base", base)  # older checkpoints name no base
    if saved_base != base:
        raise ValueError(f"{path} is of {saved_base}, this run is of {base}: {ANOTHER_FOLDER}")
    if state["training_set"] != training_set:
        raise ValueError(
            f"{path} was trained on other images than this run has, from other sheets, another VAE or other counts "
            f"(digest {state['training_set'][:12]}, here {training_set[:12]}): give it those, or another "
            "folder with --run"
        )
    for name, value in asdict(settings).items():
        saved = state["settings"].get(name)
        if name not in CHANGEABLE_SETTINGS and saved != value:
            raise ValueError(f"{path} was made with {name} {saved!r}, this run has {value!r}: {ANOTHER_FOLDER}")


def check_weights_fit(path: Path, state: dict[str, Any], own: dict[str, Tensor]) -> None:
    """Check a checkpoint's weights against those of a run's model. Raises: ValueError: another name or shape."""
    for name in ("model", "average"):
        if difference := shape_difference(own, state[name]):
            raise ValueError(f"{path} is of another base than this run, or of another version's: {difference}")


def check_optimizers_fit(path: Path, state: dict[str, Any], own: list[torch.optim.Optimizer]) -> None:
    """Check what a checkpoint keeps of the optimizers against those of a run.

    Raises: ValueError: they share the weights out among themselves in another way, as an earlier version did.
    """
    counts = [sum(len(group["params"]) for group in saved["param_groups"]) for saved in state["optimizers"]]
    parameters = [[p for group in optimizer.param_groups for p in group["params"]] for optimizer in own]
    if counts != [len(of_one) for of_one in parameters] or not all(
        _state_fits(saved, of_one) for saved, of_one in zip(state["optimizers"], parameters, strict=True)
    ):
        raise ValueError(
            f"{path} shares the weights out among its optimizers in another way than this version: finish that run "
            "with the version that began it, or begin anew in another folder with --run"
        )


def _state_fits(saved: dict[str, Any], parameters: list[nn.Parameter]) -> bool:
    """Whether the tensors that an optimizer keeps of its parameters have their shapes."""
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    return all(
        x.shape == parameter.shape
        for number, parameter in zip(numbers, parameters, strict=True)
        for x in saved["state"].get(number, {}).values()
        if isinstance(x, Tensor) and x.ndim
    )
