"""Adapter <-> live model. Works on any module with linear layers inside.

An adapter's update is added beside each layer, W x + strength B A x; no base weight is overwritten, so strength 0 and a
fresh start are the base bit for bit. How little that takes, and in which number types: `layer.py`.
Letters: o outputs, i inputs, r rank.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..adapter import Adapter, Header, Pair
from ..config.type_checks import check_strengths
from ..methods import InitialFactors
from . import weight_folding
from .adapted_linear import AdaptedLinear, Strength, cancels

SUBTRACTED = "__start"
"""Ending of the name under which a start that is to be subtracted, -B_0 A_0, sits beside the factors that learn."""


def apply(model: nn.Module, adapter: Adapter, name: str, strength: Strength = 1.0) -> None:
    """Put an adapter on a model; several add up, and those that share A, byte for byte, cost no more than one.

    Args:    name: under which it is found again.
    Raises:  ValueError: the name is taken, the model lacks a layer or passes it by, a layer has another shape, or see
             config.types.check_strengths.
    """
    _check_strengths([strength])
    for layer, pair in _with_layers(model, adapter.layers, name):
        layer.put(name, pair.A, pair.B, layer.weight.dtype == torch.bfloat16 and cancels(pair.A, pair.B))
    set_strengths(model, {name: strength})


def initialise(model: nn.Module, starts: Mapping[str, InitialFactors], name: str) -> list[nn.Parameter]:
    """Put a method's start on a model and make its learning factors learn, those and nothing else.

    Args:    starts: {layer: Start}.
    Returns: the learning factors in the order of `trainable_factors`.
    Raises:  ValueError: as `apply`.
    """
    model.requires_grad_(False)
    for layer, start in _with_layers(model, starts, name):
        layer.put(name, start.A, start.B, start.subtract_start)
        layer.learning, layer.strengths[name] = name, 1.0
        if start.subtract_start:
            layer.put(name + SUBTRACTED, start.A, -start.B, True)
            layer.strengths[name + SUBTRACTED] = 1.0
        for factor in start.learns:
            weight = {"A": layer.A, "B": layer.B}[factor][name].requires_grad_(True)
            if start.mask is not None:
                # a zero gradient is a zero step for every optimizer that starts at zero
                weight.register_hook(functools.partial(torch.mul, start.mask.to(weight.device)))
        layer.refresh()
    return list(trainable_factors(model, name).values())


def trainable_factors(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """{"LAYER.A" or "LAYER.B": parameter} of the factors of an adapter that get gradients, sorted by name."""
    return {key: x for key, x in _factors(model, name).items() if x.requires_grad}


def frozen_factors(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The others, in the same form; those of a start that is subtracted have "__start" behind their keys. What learns
    means something beside them only. After a change of their numbers `set_strengths` has the layers read them anew."""
    return {key: x for key, x in _factors(model, name).items() if not x.requires_grad}


def extract(model: nn.Module, name: str, header: Header) -> Adapter:
    """A copy of an adapter that lives on a model, on the CPU. A subtracted start makes it [A; A_0], [B, -B_0].

    Raises: ValueError: no such adapter, or NaN or infinity in it.
    """
    layers = {}
    for layer_name, layer in _layers(model, name).items():
        pairs = [_pair(layer, each) for each in (name, name + SUBTRACTED) if each in layer.A]
        layers[layer_name] = Pair(A=torch.cat([x.A for x in pairs]), B=torch.cat([x.B for x in pairs], dim=1))
    return Adapter(layers=layers, header=header)


def set_strengths(model: nn.Module, strengths: Mapping[str, Strength]) -> None:
    """Change how strongly adapters on a model act, in place and at once.

    Args:   strengths: {name: a number, or (b,) one for each picture of a batch of b}. Where guidance has put copies of
            a batch below each other, each copy gets them.
    Raises: ValueError: no adapter of that name, or see config.types.check_strengths.
    """
    _check_strengths(strengths.values())
    changed: dict[int, AdaptedLinear] = {}
    for name, strength in strengths.items():
        for layer in _layers(model, name).values():
            layer.strengths[name] = strength if isinstance(strength, Tensor) else float(strength)
            changed[id(layer)] = layer
    for layer in changed.values():
        layer.refresh()


def set_layer_strengths(model: nn.Module, name: str, strengths: Mapping[str, float]) -> None:
    """Change how strongly an adapter acts in each of some of its layers, in place and at once.

    Raises: ValueError: no adapter of that name, or not on that layer.
    """
    layers = _layers(model, name)
    _check_strengths(strengths.values())
    for layer_name, strength in strengths.items():
        if layer_name not in layers:
            raise ValueError(f"the adapter {name!r} is not on the layer {layer_name!r}")
        layers[layer_name].strengths[name] = float(strength)
        layers[layer_name].refresh()


@contextmanager
def with_coefficients(model: nn.Module, name: str, gates: Mapping[str, Tensor]) -> Iterator[None]:
    """For the length of a `with`, an adapter's A is A diag(gate) with a gate (i,) for each of its layers, which may
    learn.

    Raises: ValueError: no adapter of that name; one that learns itself, or that has strengths by picture.
    """
    layers = _layers(model, name)
    if any(layer.learning == name or isinstance(layer.strengths[name], Tensor) for layer in layers.values()):
        raise ValueError(f"the adapter {name!r} learns, or has a strength for each picture: it cannot be gated")
    try:
        for layer_name, layer in layers.items():
            layer.gates[name] = gates[layer_name]
            layer.refresh()
        yield
    finally:
        for layer in layers.values():
            layer.gates.pop(name, None)
            layer.refresh()


def detach(model: nn.Module, name: str) -> None:
    """Take an adapter off a model. A layer without adapters becomes the plain layer that it was.

    Raises: ValueError: no adapter of that name.
    """
    for layer_name, layer in _layers(model, name).items():
        for each in (name, name + SUBTRACTED):
            if each in layer.A:
                layer.remove(each)
        if not layer.A:
            parent, _, child = layer_name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.base_layer)


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the adapters on a model."""
    return sorted({name for _, layer in _all_layers(model) for name in layer.A if not name.endswith(SUBTRACTED)})


def strengths(model: nn.Module) -> dict[str, dict[str, Any]]:
    """{layer: {adapter: strength}} of all that acts on a model; of several strengths for pictures a list."""
    return {
        layer_name: {name: x.tolist() if isinstance(x, Tensor) else x for name, x in sorted(layer.strengths.items())}
        for layer_name, layer in _all_layers(model)
    }


@contextmanager
def applied(model: nn.Module, adapters: Iterable[tuple[Adapter, Strength]], folds: bool = True) -> Iterator[list[str]]:
    """(adapter, strength) pairs on a model for the length of a `with`; yields their names.

    Their sum is meanwhile written into the weights, so that it costs nothing, where it `folds`: not into a quantised
    weight, nor where rounding would take much of the update, nor where a GPU has
    no room (`folding`). The very tensors that the weights were
    come back at the end. A model that is moved about meanwhile had better not fold: both copies of a weight would go.
    """
    names: list[str] = []
    taken = set(adapter_names(model))
    try:
        for adapter, strength in adapters:
            name = next(n for k in range(len(taken) + 1) if (n := f"qrlora{k}") not in taken)
            names.append(name)
            taken.add(name)
            apply(model, adapter, name, strength)
        _fold(model, folds)
        yield names
    finally:
        _fold(model, False)
        for name in names:
            if name in adapter_names(model):  # a refused one is not
                detach(model, name)


def _fold(model: nn.Module, wanted: bool) -> None:
    wanted = wanted and weight_folding.has_room(layer.weight for _, layer in _all_layers(model))
    for _, layer in _all_layers(model):
        layer.folds = wanted
        layer.refresh()


def _with_layers(model: nn.Module, items: Mapping[str, Any], name: str) -> Iterator[tuple[AdaptedLinear, Any]]:
    """(layer, item) of the named layers, which can carry adapters from then on.

    Args:   items: {layer: what has A (r, i) and B (o, r)}.
    Raises: ValueError: the name is taken or cannot be one; a layer is missing or has another shape.
    """
    if not name or "." in name or name.endswith(SUBTRACTED):
        raise ValueError(f"an adapter's name may not be empty, have a dot in it or end in {SUBTRACTED}: got {name!r}")
    if name in adapter_names(model):
        raise ValueError(f"an adapter named {name!r} is on the model already: detach it or choose another name")
    refuse_passed_by(model, items)
    modules = dict(model.named_modules())
    for layer, item in items.items():
        linear = modules.get(f"{layer}.base_layer", modules.get(layer))
        if not isinstance(linear, nn.Linear):
            raise ValueError(f"the model has no linear layer {layer!r}: the adapter belongs to another base")
        shape, own = (len(item.B), item.A.shape[1]), (linear.out_features, linear.in_features)
        if shape != own:
            raise ValueError(f"{layer}: the adapter is for a weight {shape}, the base's is {own}: another base")
    for layer_name, item in items.items():
        found: Any = modules[layer_name]
        layer = found if isinstance(found, AdaptedLinear) else AdaptedLinear(found)
        layer.train(found.training)
        yield layer, item
        parent, _, child = layer_name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)  # only now that it carries something


def refuse_passed_by(model: nn.Module, layers: Iterable[str]) -> None:
    """Raises ValueError: a layer that its parent never calls. torch's own attention and encoder layers read the weights
    of theirs, the latter whenever no gradient is wanted, so that what sits beside a weight would not act."""
    modules = dict(model.named_modules())
    for layer in layers:
        parent = modules.get(layer.rpartition(".")[0])
        if isinstance(parent, nn.MultiheadAttention | nn.TransformerEncoderLayer):
            kind = type(parent).__name__
            raise ValueError(f"{layer}: torch's {kind} reads its weight and passes the layer by: no adapter acts there")


def _check_strengths(strengths: Iterable[Strength]) -> None:
    for strength in strengths:
        check_strengths(strength.flatten().tolist() if isinstance(strength, Tensor) else [strength])


def _all_layers(model: nn.Module) -> Iterator[tuple[str, AdaptedLinear]]:
    """(name, layer) of every layer that carries adapters."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, AdaptedLinear))


def _layers(model: nn.Module, name: str) -> dict[str, AdaptedLinear]:
    found = {layer_name: layer for layer_name, layer in _all_layers(model) if name in layer.A}
    if not found:
        raise ValueError(
            f"no adapter named {name!r} on the model; there are: {', '.join(adapter_names(model)) or 'none'}"
        )
    return found


def _factors(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """{"LAYER.A" or "LAYER.B": parameter} of an adapter and, with its ending, of a start that is subtracted; sorted."""
    factors = {
        f"{layer_name}.{factor}{ending}": values[name + ending]
        for layer_name, layer in _layers(model, name).items()
        for factor, values in (("A", layer.A), ("B", layer.B))
        for ending in ("", SUBTRACTED)
        if name + ending in values
    }
    return dict(sorted(factors.items()))


def _pair(layer: AdaptedLinear, name: str) -> Pair:
    def copy(factor: Tensor) -> Tensor:
        return factor.detach().to("cpu", torch.float32, copy=True).contiguous()

    return Pair(A=copy(layer.A[name]), B=copy(layer.B[name]))
