"""Weights and checkpoints that torch has written, read with one line about a file that is something else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def read_torch_file(path: Path, device: str, what: str) -> dict[str, Any]:
    """A dictionary of tensors and plain values, by names, from a file of `torch.save`.

    Args:   what: it should be, for the message.
    Raises: OSError.  ValueError: it is something else, or not whole.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (OSError, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # what torch's reader raises for another file depends on the file
        raise ValueError(f"{path} is no whole {what} ({type(error).__name__}): give another file") from error
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ValueError(f"{path} is no {what}: give another file")
    return state


def shape_difference(own: Mapping[str, Tensor], given: Mapping[str, Any]) -> str:
    """Where what was given for weights differs from a model's own in name or shape, for a message; "" if nowhere."""
    shapes, others = (
        {name: tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for name, x in state.items()}
        for state in (own, given)
    )
    differ = sorted((name for name in shapes | others if shapes.get(name) != others.get(name)), key=str)
    if not differ:
        return ""
    there, here = (x.get(differ[0], "absent") for x in (others, shapes))
    return f"{differ[0]} is {there} there, {here} here ({len(differ)} weights differ)"
