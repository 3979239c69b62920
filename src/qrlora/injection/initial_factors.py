"""What a method starts from: directions, and of them a start for each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..basis import Basis, Weights
from ..methods import InitialFactors, Method, weight_directions


def initial_factors(
    method: Method,
    weights: Weights,
    rank: int,
    generator: torch.Generator,
    slot: int,
    leading: Callable[[], Basis],
    contrast: Callable[[], Mapping[str, Tensor]] = dict,
) -> tuple[dict[str, InitialFactors], Basis | None]:
    """{layer: Start}, and the basis whose digest the adapter is to name; None where no other adapter can share one.

    Beyond what directions need, weights are read only for methods whose start looks at their numbers: reading those
    of a quantised base is reading its whole checkpoint.

    Args:    leading () -> the basis of the method's side.  contrast () -> {layer: Q (i, r)} by the lesson.
    Raises:  ValueError: as `leading` and `contrast`, and a rank or slot that does not fit a layer.
    """
    shapes = [(layer, torch.empty(shape, device="meta")) for layer, shape in weights.layers.items()]
    basis, own = None, {}
    if method.directions == "slot":
        own = weight_directions(method, shapes, rank, slot)
    elif method.directions == "minor":
        basis = Basis(weight_directions(method, weights, rank, slot), rank, "input")
    elif method.directions == "contrast":
        basis = Basis(contrast(), rank, "input")
    elif method.side is not None:
        basis = leading()
    directions = basis.Q if basis else own
    each = weights if method.reads else shapes
    return {layer: method.start(weight, directions.get(layer), rank, generator) for layer, weight in each}, basis
