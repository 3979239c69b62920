"""rehearse(base) -> Report: what a training at full size takes, before anything is downloaded.

Parameters, file sizes and memory are counted with the real code on the meta device: nothing about them is guessed but
MARGIN and RESERVED. Seconds come from one real block of each kind, times how many there are: extrapolated. The whole
model is never run for real, not even on a machine that could.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..adapter import Header
from ..attach import detach
from ..families import DTYPES, Base, choose_device
from ..families.blank import blank_base
from ..files import size_in_bytes
from ..methods import METHODS
from ..training.loop import NAME
from .blocks import basis_seconds, block_seconds, kinds_of
from .live import start_on, step_bytes

CARDS = (12, 16, 24, 48, 80)
"""Memory of graphics cards, GB."""
RESERVED = 1.0e9
"""Bytes that a driver's context, the allocator's gaps and work space are taken to need: an assumption."""
MARGIN = 1.1
"""Times an update's count: on pico bases a real update took up to 1.06 of it (tests/test_rehearsal.py)."""
LINEAR_BYTES = {"": None, "int8": 1.0, "float8": 1.0, "nf4": 0.5 + 4 / 64}
"""Bytes of one number in a quantised linear layer of a block; nf4 has one float32 scale for 64 numbers."""


@dataclass(frozen=True)
class Report:
    """What a rehearsal found. Bytes and seconds."""

    base: str
    family: str
    method: str
    rank: int
    targets: str
    resolution: int
    """Pixels."""
    dtype: str
    device: str
    parameters: int
    """Of the trainable part."""
    layers: int
    """That an adapter sits on."""
    trained: Mapping[str, int]
    """{method: numbers that learn}."""
    files: Mapping[str, int]
    """{"full", "compact": bytes in bfloat16}."""
    weights: Mapping[str, int]
    """{dtype or quantisation: bytes of the trainable part}."""
    spare: Mapping[str, int]
    """{text encoder or VAE: bytes}; they wait in the CPU's memory while an adapter learns."""
    adapter: Mapping[str, int]
    """{method: bytes of A and B in float32}."""
    step: Mapping[str, Mapping[str, int]]
    """{method: {"kept", "recomputed": most bytes of activations, gradients and moments in an update}}, where
    activations are kept or recomputed (gradient_checkpointing)."""
    seconds: Mapping[str, float]
    """Extrapolated: {"basis", "METHOD step", "METHOD step, recomputed", "METHOD denoising"}; empty if not timed."""

    def need(self, weights: str, activations: str, method: str) -> float:
        """Bytes of a training: model, adapter, update with MARGIN, and what is RESERVED."""
        return self.weights[weights] + self.adapter[method] + MARGIN * self.step[method][activations] + RESERVED

    def fits(self, weights: str, activations: str, method: str) -> int | None:
        """The smallest of CARDS, in GB, that is large enough; None: none of them."""
        return next((card for card in CARDS if self.need(weights, activations, method) <= card * 1e9), None)


def rehearse(
    name: str,
    *,
    method: str = "qr",
    against: str = "lora",
    rank: int | None = None,
    targets: str | None = None,
    resolution: int | None = None,
    dtype: str = "bfloat16",
    device: str = "auto",
    repeats: int = 1,
    on_stage: Callable[[str], Any] = lambda _what: None,
) -> Report:
    """What training and sampling with a base take.

    Args:    name: as `families.blank.blank_base`.  against: another method to compare with, or "".
             rank, targets, resolution: None for the base's own.  dtype: of the frozen base.
             repeats: timed runs of each block; 0 counts and times nothing.
    Raises:  OSError: no such base.  ValueError: an unknown method, dtype, device or target; a side that does not fit.
    """
    home, methods = choose_device(device), _checked(method, against, dtype)
    on_stage("building the model without weights")
    base, spare, words = blank_base(name)
    own = base.defaults.for_run("content", method)
    rank, targets, resolution = rank or own.rank, targets or own.targets, resolution or own.resolution
    base.check_side("resolution", resolution)
    nn.Module.to(base.model, DTYPES[dtype])
    base.model.requires_grad_(False).eval()
    shapes = {layer: (int(w.shape[0]), int(w.shape[1])) for layer, w in base.weights(targets)}
    told: dict[str, Any] = {
        "base": name,
        "family": base.family.name,
        "method": method,
        "rank": rank,
        "targets": targets,
    }
    header = Header(part=base.family.part, **told)
    facts = _sizes(base, shapes, header, methods, dtype)
    facts["spare"] = {part: count * DTYPES[dtype].itemsize for part, count in spare.items()}
    side = METHODS[method].side
    if repeats and side:
        on_stage("finding the leading directions")
        facts["seconds"]["basis"] = basis_seconds(list(shapes.values()), rank, side, home)
    for each in methods:
        _one_method(base, each, (rank, targets, resolution, words, repeats), home, facts, on_stage)
    return Report(**told, resolution=resolution, dtype=dtype, device=_device_name(home), **facts)


def _checked(method: str, against: str, dtype: str) -> list[str]:
    """The methods to rehearse."""
    methods = [x for x in dict.fromkeys((method, against)) if x]
    for wrong in (x for x in methods if x not in METHODS):
        raise ValueError(f"no method {wrong!r}; known: {', '.join(METHODS)}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return methods


def _sizes(
    base: Base, shapes: Mapping[str, tuple[int, int]], header: Header, methods: list[str], dtype: str
) -> dict[str, Any]:
    """What Report has of model, adapter and files; the methods' own are still empty.

    Args: shapes: {layer: (o, i)}.
    """
    contents = ("full", "compact") if METHODS[header.method].frozen else ("full",)
    learns = {x: sum(METHODS[x].trainable_parameters(o, i, header.rank) for o, i in shapes.values()) for x in methods}
    return {
        "weights": weight_bytes(base, DTYPES[dtype].itemsize, dtype),
        "layers": len(shapes),
        "files": {x: size_in_bytes(shapes, header, x, dtype=torch.bfloat16) for x in contents},
        "trained": learns,
        "parameters": sum(p.numel() for p in base.model.parameters()),
        **{"adapter": {}, "step": {}, "seconds": {}},
    }


def _one_method(
    base: Base,
    method: str,
    settings: tuple[int, str, int, int, int],
    home: torch.device,
    facts: dict[str, Any],
    on_stage: Callable[[str], Any],
) -> None:
    """Add a method's bytes and seconds to the facts; the base is left as it was."""
    rank, targets, resolution, words, repeats = settings
    before = {id(p) for p in base.model.parameters()}
    learning = start_on(base, targets, method, rank)
    facts["adapter"][method] = sum(4 * p.numel() for p in base.model.parameters() if id(p) not in before)
    facts["step"][method] = {}
    for activations in ("kept", "recomputed"):
        on_stage(f"{method}: counting an update's memory, activations {activations}")
        run = {"resolution": resolution, "batch_size": 1, "gradient_checkpointing": activations == "recomputed"}
        facts["step"][method][activations] = step_bytes(base, learning, words, run)
    if repeats:
        on_stage(f"{method}: timing a block of each kind")
        kinds = kinds_of(base, resolution, words)
        times = [(kind.count, *block_seconds(kind, home, repeats)) for kind in kinds]
        step, look = (sum(row[0] * row[k] for row in times) for k in (1, 2))
        facts["seconds"] |= {f"{method} step": step, f"{method} step, recomputed": step + look}
        facts["seconds"][f"{method} denoising"] = look
    detach(base.model, NAME)


def weight_bytes(base: Base, size: int, dtype: str) -> dict[str, int]:
    """{dtype, int8, float8, nf4: bytes of the trainable part}; quantised are the linear layers in its blocks.

    Args: size: bytes of one number that is not quantised.
    """
    inside = {
        id(layer.weight): layer.weight
        for block in base.model.modules()
        if type(block).__name__ in base.family.blocks
        for layer in block.modules()
        if isinstance(layer, nn.Linear)
    }
    linear = sum(w.numel() for w in inside.values())
    rest = sum(p.numel() for p in base.model.parameters()) - linear
    return {name or dtype: round(linear * (per or size)) + rest * size for name, per in LINEAR_BYTES.items()}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
