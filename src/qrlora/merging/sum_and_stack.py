"""The merging rules sum and stack, which lose nothing, and peft-linear, which is what many tools do.

Letters: o outputs, i inputs, r rank, w the weight of an adapter in the merge.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..adapter import Adapter, Pair
from ..initialisation_methods import METHODS

MIN_KEPT_FRACTION = 0.99
"""Below this fraction of its squared Frobenius norm, an adapter written in another basis is no longer the same one."""
HINT = "Train both on one base model with one rank, or merge with rule='stack'"


@dataclass(frozen=True)
class Merged:
    """What a rule returns."""

    layers: dict[str, Pair]
    method: str
    """The header's method."""
    kept: list[float] | None
    """By adapter, the fraction of its squared norm that the merge kept, 0..1; None: the result is no sum of the
    updates."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What the rule chose and what it lost, for the header."""


def kept_fraction_of_update(adapter: Adapter, by_layer: Mapping[str, float]) -> float:
    """The share of an adapter's whole |B A|^2 that layers written in another basis keep, 0..1; 1 for a zero adapter."""
    squared_norm = {layer: pair.squared_norm for layer, pair in adapter.layers.items()}
    total = sum(squared_norm.values())
    return sum(by_layer[layer] * squared_norm[layer] for layer in squared_norm) / total if total else 1.0


def add(adapters: Sequence[Adapter], weights: Sequence[float]) -> Merged:
    """The rule sum: one basis, the rank stays: dR = sum_k w_k dR_k (paper, eq. 7).

    An adapter that stands in another basis Q_k is first written in the common one, per layer the
    widest: dR_k' = (Q^T Q_k) dR_k. In the same basis, byte for byte, nothing is rewritten and the
    sum is exact.

    Raises:  ValueError: methods that freeze no common factor; less than 99 % of an adapter's squared norm kept.
    """
    side = _common_frozen_side(adapters)
    basis = _widest_directions(adapters, side)
    placed, kept = [], []
    for adapter in adapters:
        in_basis, by_layer = adapter.in_basis(basis, side)
        placed.append(in_basis)
        kept.append(_checked_kept_fraction(adapter, by_layer))
    layers = {}
    for layer in basis:
        parts = [(w, x.layers[layer]) for w, x in zip(weights, placed, strict=True) if layer in x.layers]
        if side == "input":
            layers[layer] = Pair(parts[0][1].A, _weighted_sum([(w, pair.B) for w, pair in parts]))
        else:
            layers[layer] = Pair(_weighted_sum([(w, pair.A) for w, pair in parts]), parts[0][1].B)
    methods = {adapter.header.method for adapter in adapters}
    return Merged(layers, methods.pop() if len(methods) == 1 else {"input": "qr", "output": "qr-output"}[side], kept)


def stack(adapters: Sequence[Adapter], weights: Sequence[float]) -> Merged:
    """The rule stack: any bases and methods, exactly, at rank r_1 + r_2 + ...: A = [A_1; A_2; ...], B = [w_1 B_1, w_2
    B_2, ...]."""
    layers = {}
    for layer in _layers_of(adapters):
        parts = [(w, x.layers[layer]) for w, x in zip(weights, adapters, strict=True) if layer in x.layers]
        layers[layer] = Pair(torch.cat([pair.A for _, pair in parts]), torch.cat([w * pair.B for w, pair in parts], 1))
    return Merged(layers, "stack", [1.0] * len(adapters))


def peft_linear(adapters: Sequence[Adapter], weights: Sequence[float]) -> Merged:
    """The rule peft-linear: A and B added apart, (sum_k sqrt(w_k) B_k) (sum_k sqrt(w_k) A_k): PEFT's and kohya's
    "linear" merge.

    It is not the sum of the updates: the cross terms sqrt(w_k w_m) B_k A_m come on top, which for two adapters of one
    frozen factor are as much again. Here because people merge so. As PEFT does, a negative weight's sign goes into A.

    Raises: ValueError: adapters of different ranks in a layer.
    """
    layers = {}
    for layer in _layers_of(adapters):
        parts = [(w, x.layers[layer]) for w, x in zip(weights, adapters, strict=True) if layer in x.layers]
        if len({pair.rank for _, pair in parts}) > 1:
            ranks = " and ".join(str(pair.rank) for _, pair in parts)
            raise ValueError(
                f"{layer}: rule='peft-linear' adds A and B apart, but the ranks are {ranks}; use rule='stack'"
            )
        A = _weighted_sum([(math.copysign(math.sqrt(abs(w)), w), pair.A) for w, pair in parts])
        layers[layer] = Pair(A, _weighted_sum([(math.sqrt(abs(w)), pair.B) for w, pair in parts]))
    return Merged(layers, "peft-linear", None)


def _layers_of(adapters: Sequence[Adapter]) -> dict[str, None]:
    """The layers of any adapter, in order."""
    return dict.fromkeys(layer for adapter in adapters for layer in adapter.layers)


def _common_frozen_side(adapters: Sequence[Adapter]) -> str:
    """The side whose directions all adapters freeze, for the rule sum. Raises ValueError where there is none."""
    names = list(dict.fromkeys(adapter.header.method for adapter in adapters))
    sides = {METHODS[name].frozen_side if name in METHODS else None for name in names}
    side = sides.pop() if len(sides) == 1 else None
    if side is None:
        methods = " and ".join(names)
        raise ValueError(f"rule='sum' adds inside one frozen basis, which {methods} do not share; use rule='stack'")
    return side


def _widest_directions(adapters: Sequence[Adapter], side: str) -> dict[str, Tensor]:
    """{layer: the directions in which the rule sum adds}, as columns: the frozen ones of the first adapter with the
    highest rank there."""
    widest: dict[str, Pair] = {}
    for adapter in adapters:
        for layer, pair in adapter.layers.items():
            if layer not in widest or pair.rank > widest[layer].rank:
                widest[layer] = pair
    return {layer: pair.directions(side) for layer, pair in widest.items()}


def _checked_kept_fraction(adapter: Adapter, by_layer: Mapping[str, float]) -> float:
    """The fraction of an adapter's squared norm that an exact merge keeps. Raises ValueError below 99 %."""
    if all(share == 1.0 for share in by_layer.values()):
        return 1.0
    kept = kept_fraction_of_update(adapter, by_layer)
    if kept < MIN_KEPT_FRACTION:
        worst = min(by_layer, key=by_layer.__getitem__)
        share = f"{kept:.1%} of an adapter's update ({by_layer[worst]:.1%} in {worst})"
        raise ValueError(f"the common basis holds only {share}. {HINT}")
    return kept


def _weighted_sum(terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    """sum_k w_k X_k."""
    total = terms[0][0] * terms[0][1]
    for weight, tensor in terms[1:]:
        total.add_(tensor, alpha=weight)
    return total
