"""Modules on a device for as long as they compute there."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn


@contextlib.contextmanager
def components_on_device(
    components: Sequence[nn.Module], device: torch.device | None, stay: bool = False
) -> Iterator[None]:
    """Modules on a device (None: where they are) for the length of a `with`. Then each is moved back; with `stay` only
    after a failure half-way."""
    places = [] if device is None else [(component, next(component.parameters()).device) for component in components]
    before = [(component, place) for component, place in places if place != device]
    try:
        for component, _ in before:
            component.to(device)
    except BaseException:
        for component, place in before:
            component.to(place)
        raise
    try:
        yield
    finally:
        for component, place in [] if stay else before:
            component.to(place)
