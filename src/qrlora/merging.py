"""RULES: how adapters of one base model become one adapter.

Letters: o outputs, i inputs, r rank, w the weight of an adapter in the merge.

Both rules give sum_k w_k B_k A_k. PEFT's and kohya's "linear" merges do not: they weigh and add A
and B separately, which for two adapters of one basis is twice the update at weights (1, 1).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .adapter import Adapter, Header, Pair
from .basis import Basis, same_base
from .methods import METHODS

MINIMUM_KEPT_ENERGY = 0.99
WAY_OUT = "Train both on one base model with one rank, or merge with rule='stack'"


class Merged(NamedTuple):
    """What a rule returns."""

    layers: dict[str, Pair]
    method: str
    """The header's method."""
    kept: list[float]
    """By adapter, the share of its energy that the merge kept, 0..1."""


def merge(adapters: Sequence[Adapter], weights: Sequence[float], rule: str = "sum") -> Adapter:
    """One adapter whose update is the weighted sum of the adapters' updates.

    Args:    adapters: one or more; a layer may be missing in some.  weights: one finite number each,
             0 and negative ones too.  rule: a name of RULES.
    Returns: an adapter of role "merged"; header.parents are the adapters' headers, each with its
             "weight" and "kept_energy".
    Raises:  ValueError: no adapters, wrong count of weights, unknown rule, another family or base
             model, layers of another shape, and what the rule refuses.
    """
    if not adapters or len(adapters) != len(weights):
        raise ValueError(f"a merge needs one weight for each adapter, got {len(adapters)} adapters, weights {weights}")
    if not all(math.isfinite(weight) for weight in weights):
        raise ValueError(f"weights must be finite numbers, got {list(weights)}")
    if rule not in RULES:
        raise ValueError(f"no merging rule {rule!r}; choose one of {', '.join(RULES)}")
    for other in adapters[1:]:
        _check_same_base(adapters[0], other)
    merged = RULES[rule](adapters, weights)
    return Adapter(merged.layers, _header(adapters, weights, rule, merged))


def project(adapter: Adapter, basis: Basis, base: Header) -> tuple[Adapter, dict[str, float]]:
    """An adapter of any method, written in a base's basis: the nearest that merges with ours at the basis' rank.

    Least squares, see Adapter.in_basis. A LoRA that was trained freely may lie mostly outside the leading directions of
    the weights: the shares say how much of its energy was kept.

    Args:    basis: of the adapter's layers.  base: family, part, name and fingerprint of the model it is of.
    Returns: the adapter, of method "qr" or "qr-output", and by layer the kept share of |B A|^2, 0..1.
    Raises:  ValueError: an adapter of another family, part or base; a layer that is not in the basis, or of another
             size.
    """
    for name in ("family", "part"):
        here, there = getattr(adapter.header, name), getattr(base, name)
        if here and here != there:
            raise ValueError(f"the adapter's {name} is {here!r}, that of {base.base} is {there!r}: choose its own base")
    if not same_base(adapter.header.fingerprint, base.fingerprint):
        raise ValueError(f"the adapter was trained on {adapter.header.base!r}, whose weights differ from {base.base!r}")
    placed, kept = adapter.in_basis(basis.Q, basis.side)
    of_base = {name: getattr(base, name) for name in ("family", "part", "base", "fingerprint")}
    method = {"input": "qr", "output": "qr-output"}[basis.side]
    return replace(
        placed, header=replace(adapter.header, **of_base, method=method, rank=basis.rank, basis=basis.digest)
    ), kept


def energy_kept(adapter: Adapter, by_layer: Mapping[str, float]) -> float:
    """The share of an adapter's whole |B A|^2 that its layers keep, 0..1; 1 for a zero adapter."""
    energy = {layer: pair.energy for layer, pair in adapter.layers.items()}
    total = sum(energy.values())
    return sum(by_layer[layer] * energy[layer] for layer in energy) / total if total else 1.0


def add(adapters: Sequence[Adapter], weights: Sequence[float]) -> Merged:
    """One basis, the rank stays: dR = sum_k w_k dR_k (paper, eq. 7).

    An adapter that stands in another basis Q_k is first written in the common one, per layer the
    widest: dR_k' = (Q^T Q_k) dR_k. In the same basis, byte for byte, nothing is rewritten and the
    sum is exact.

    Raises:  ValueError: methods that freeze no common factor; less than 99 % of an adapter's energy kept.
    """
    side = _common_frozen_side(adapters)
    basis = _widest_directions(adapters, side)
    placed, kept = [], []
    for adapter in adapters:
        in_basis, by_layer = adapter.in_basis(basis, side)
        placed.append(in_basis)
        kept.append(_kept_energy(adapter, by_layer))
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
    """Any bases and methods, exactly, at rank r_1 + r_2 + ...: A = [A_1; A_2; ...], B = [w_1 B_1, w_2 B_2, ...]."""
    layers = {}
    for layer in dict.fromkeys(layer for adapter in adapters for layer in adapter.layers):
        parts = [(w, x.layers[layer]) for w, x in zip(weights, adapters, strict=True) if layer in x.layers]
        layers[layer] = Pair(torch.cat([pair.A for _, pair in parts]), torch.cat([w * pair.B for w, pair in parts], 1))
    return Merged(layers, "stack", [1.0] * len(adapters))


RULES: dict[str, Callable[[Sequence[Adapter], Sequence[float]], Merged]] = {
    "sum": add,  # arXiv 2507.04599, eq. 7
    "stack": stack,  # exact for any LoRA; PEFT's "cat", with the weight on one factor only
}


def _header(adapters: Sequence[Adapter], weights: Sequence[float], rule: str, merged: Merged) -> Header:
    """The merged adapter's header: what all share, and the parents."""
    headers = [adapter.header for adapter in adapters]
    parents = tuple(
        {**header.__dict__, "parents": list(header.parents), "weight": float(weight), "kept_energy": kept}
        for header, weight, kept in zip(headers, weights, merged.kept, strict=True)
    )
    same_layers = all(adapter.layers.keys() == adapters[0].layers.keys() for adapter in adapters)
    keeps_basis = merged.method in METHODS and same_layers and len({header.basis for header in headers}) == 1
    return replace(
        headers[0],
        **{name: next(filter(None, (getattr(x, name) for x in headers)), "") for name in ("family", "part", "base")},
        fingerprint={layer: value for header in reversed(headers) for layer, value in header.fingerprint.items()},
        method=merged.method,
        rank=max(pair.rank for pair in merged.layers.values()),
        targets=",".join(dict.fromkeys(header.targets for header in headers if header.targets)),
        basis=headers[0].basis if keeps_basis else "",
        role="merged",
        trigger=", ".join(dict.fromkeys(header.trigger for header in headers if header.trigger)),
        prompt="",
        config={"rule": rule, "weights": [float(weight) for weight in weights]},
        parents=parents,
    )


def _check_same_base(first: Adapter, other: Adapter) -> None:
    """Raises ValueError unless two adapters can be of one base model, as far as their headers know."""
    for name in ("family", "part"):
        here, there = getattr(first.header, name), getattr(other.header, name)
        if here and there and here != there:
            raise ValueError(f"the adapters are of different {name}: {here!r} and {there!r}; they cannot be merged")
    for layer in first.shapes.keys() & other.shapes.keys():
        here, there = first.layers[layer].shape, other.layers[layer].shape
        if here != there:
            raise ValueError(
                f"{layer}: the adapters' base models differ, its weight is {here} in one, {there} in another"
            )
    if not same_base(first.header.fingerprint, other.header.fingerprint):
        raise ValueError(
            f"the adapters were trained on different base models, {first.header.base!r} and {other.header.base!r}, "
            "whose weights differ by more than 1 %; train both on one base model"
        )


def _common_frozen_side(adapters: Sequence[Adapter]) -> str:
    """The side whose directions are frozen in every adapter. Raises ValueError where there is none."""
    names = list(dict.fromkeys(adapter.header.method for adapter in adapters))
    sides = {METHODS[name].frozen_side if name in METHODS else None for name in names}
    side = sides.pop() if len(sides) == 1 else None
    if side is None:
        methods = " and ".join(names)
        raise ValueError(f"rule='sum' adds inside one frozen basis, which {methods} do not share; use rule='stack'")
    return side


def _widest_directions(adapters: Sequence[Adapter], side: str) -> dict[str, Tensor]:
    """{layer: the frozen directions, as columns, of the first adapter with the highest rank there}."""
    widest: dict[str, Pair] = {}
    for adapter in adapters:
        for layer, pair in adapter.layers.items():
            if layer not in widest or pair.rank > widest[layer].rank:
                widest[layer] = pair
    return {layer: pair.directions(side) for layer, pair in widest.items()}


def _kept_energy(adapter: Adapter, by_layer: Mapping[str, float]) -> float:
    """The share of an adapter's whole energy that its layers keep. Raises ValueError below 99 %."""
    if all(share == 1.0 for share in by_layer.values()):
        return 1.0
    kept = energy_kept(adapter, by_layer)
    if kept < MINIMUM_KEPT_ENERGY:
        worst = min(by_layer, key=by_layer.__getitem__)
        share = f"{kept:.1%} of an adapter's update ({by_layer[worst]:.1%} in {worst})"
        raise ValueError(f"the common basis holds only {share}. {WAY_OUT}")
    return kept


def _weighted_sum(terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    """sum_k w_k X_k."""
    total = terms[0][0] * terms[0][1]
    for weight, tensor in terms[1:]:
        total.add_(tensor, alpha=weight)
    return total
