"""The initial A and B of a method for every target layer, and the basis that they are computed from."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..basis import Basis, Weights
from ..initialisation_methods import DirectionSources, InitialFactors, Method


def initial_factors(
    method: Method,
    weights: Weights,
    rank: int,
    generator: torch.Generator,
    slot: int,
    leading: Callable[[], Basis],
    contrast: Callable[[], Mapping[str, Tensor]] = dict,
) -> tuple[dict[str, InitialFactors], Basis | None]:
    """{layer: initial factors}, and the basis whose digest goes into the header; None if no other adapter can share it.

    Beyond the directions' needs, weights are read only for methods whose initial factors depend on their values:
    reading those of a quantised base is reading its whole checkpoint.

    Args:    leading () -> the basis of the method's side.  contrast () -> {layer: Q (i, r)} by the training example.
    Raises:  ValueError: as `leading` and `contrast`, and a rank or slot that does not fit a layer.
    """
    shapes = [(layer, torch.empty(shape, device="meta")) for layer, shape in weights.layers.items()]
    basis = method.directions(DirectionSources(weights, rank, slot, leading, contrast)) if method.side else None
    each = weights if method.reads_weight else shapes
    Q = basis.Q if basis else {}
    factors = {layer: method.start(weight, Q.get(layer), rank, generator) for layer, weight in each}
    return factors, basis if method.shares_basis else None
