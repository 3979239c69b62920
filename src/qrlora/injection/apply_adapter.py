"""Apply adapters to a live model, set their strengths, extract and detach them. For any module with linear layers.

An update is added beside each layer, W x + strength B A x, and no base weight is overwritten: at strength 0, or before
training, the model is the base bit for bit. The layer itself, its cost and its dtypes: `adapted_linear.py`.
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
from ..config.type_checks import ADAPTER_HINT, check_instance, check_strengths
from ..initialisation_methods import InitialFactors
from . import weight_folding
from .adapted_linear import AdaptedLinear, Strength, product_cancels

START_SUFFIX = "__start"
"""Suffix of the name of a subtracted start -B_0 A_0 (`InitialFactors.subtract_start`) beside the trainable factors."""


def apply(model: nn.Module, adapter: Adapter, name: str, strength: Strength = 1.0) -> None:
    """Apply an adapter to a model. Several add up; those with an equal A, byte for byte, cost no more than one.

    Args:    name: of the adapter on the model, for `set_strengths` and `detach`.
    Raises:  ValueError: the name is taken; a layer is missing, never called, or of another shape; a strength that
             `check_strengths` refuses.
    """
    check_instance("adapter", adapter, Adapter, ADAPTER_HINT)
    _check_strengths([strength])
    _check_can_add(model, adapter.layers, name)
    for layer, pair in _wrapped_layers(model, adapter.layers):
        layer.add_update(name, pair.A, pair.B, layer.weight.dtype == torch.bfloat16 and product_cancels(pair.A, pair.B))
    set_strengths(model, {name: strength})


def initialise(model: nn.Module, factors: Mapping[str, InitialFactors], name: str) -> list[nn.Parameter]:
    """Add an adapter with a method's initial factors to a model; only its trainable factors get gradients.

    Args:    factors: {layer: initial factors}.
    Returns: the trainable parameters in the order of `trainable_factors`.
    Raises:  ValueError: as `apply`.
    """
    _check_can_add(model, factors, name)  # before anything is frozen: another adapter may be in training
    model.requires_grad_(False)
    for layer, start in _wrapped_layers(model, factors):
        layer.add_update(name, start.A, start.B, start.subtract_start)
        layer.trainable_name, layer.strengths[name] = name, 1.0
        if start.subtract_start:
            layer.add_update(name + START_SUFFIX, start.A, -start.B, True)
            layer.strengths[name + START_SUFFIX] = 1.0
        for factor in start.trainable:
            weight = {"A": layer.A, "B": layer.B}[factor][name].requires_grad_(True)
            if start.mask is not None:
                # a zero gradient is a zero step for every optimizer that starts at zero
                weight.register_hook(functools.partial(torch.mul, start.mask.to(weight.device)))
        layer.update_frozen_sum()
    return list(trainable_factors(model, name).values())


def trainable_factors(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """{"LAYER.A" or "LAYER.B": parameter} of an adapter's trainable factors, sorted by name."""
    return {key: x for key, x in _factors_of_adapter(model, name).items() if x.requires_grad}


def frozen_factors(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """An adapter's frozen factors, as `trainable_factors`; keys of a subtracted start end in "__start".
    After a change of their values call `set_strengths`, which makes the layers read them again."""
    return {key: x for key, x in _factors_of_adapter(model, name).items() if not x.requires_grad}


def extract(model: nn.Module, name: str, header: Header) -> Adapter:
    """Copy an adapter off a model, onto the CPU. With a subtracted start it is [A; A_0], [B, -B_0].

    Raises: ValueError: no such adapter, or NaN or infinity in it.
    """
    layers = {}
    for layer_name, layer in _layers_of_adapter(model, name).items():
        pairs = [_copy_pair(layer, each) for each in (name, name + START_SUFFIX) if each in layer.A]
        layers[layer_name] = Pair(A=torch.cat([x.A for x in pairs]), B=torch.cat([x.B for x in pairs], dim=1))
    return Adapter(layers=layers, header=header)


def set_strengths(model: nn.Module, strengths: Mapping[str, Strength]) -> None:
    """Set the strengths of adapters on a model.

    Args:   strengths: {name: a number, or (b,) one for each image of a batch of b}. Where classifier-free guidance
            repeats a batch, each copy gets them.
    Raises: ValueError: no adapter of that name, or a strength that `check_strengths` refuses.
    """
    _check_strengths(strengths.values())
    changed: dict[int, AdaptedLinear] = {}
    for name, strength in strengths.items():
        for layer in _layers_of_adapter(model, name).values():
            layer.strengths[name] = strength if isinstance(strength, Tensor) else float(strength)
            changed[id(layer)] = layer
    for layer in changed.values():
        layer.update_frozen_sum()


def set_layer_strengths(model: nn.Module, name: str, strengths: Mapping[str, float]) -> None:
    """Set an adapter's strength in some of its layers, {layer: strength}.

    Raises: ValueError: no adapter of that name, or not on that layer.
    """
    layers = _layers_of_adapter(model, name)
    _check_strengths(strengths.values())
    for layer_name, strength in strengths.items():
        if layer_name not in layers:
            raise ValueError(f"the adapter {name!r} is not on the layer {layer_name!r}")
        layers[layer_name].strengths[name] = float(strength)
        layers[layer_name].update_frozen_sum()


@contextmanager
def with_coefficients(model: nn.Module, name: str, coefficients: Mapping[str, Tensor]) -> Iterator[None]:
    """For the length of a `with`, an adapter's A is A diag(m), with ZipLoRA's merger coefficients m (i,) of each layer,
    which may be trainable.

    Raises: ValueError: no adapter of that name; one that is being trained, or has a strength for each image.
    """
    layers = _layers_of_adapter(model, name)
    if any(layer.trainable_name == name or isinstance(layer.strengths[name], Tensor) for layer in layers.values()):
        raise ValueError(
            f"the adapter {name!r} is in training or has a strength for each image: it takes no coefficients"
        )
    try:
        for layer_name, layer in layers.items():
            layer.coefficients[name] = coefficients[layer_name]
            layer.update_frozen_sum()
        yield
    finally:
        for layer in layers.values():
            layer.coefficients.pop(name, None)
            layer.update_frozen_sum()


def detach(model: nn.Module, name: str) -> None:
    """Detach an adapter from a model. A layer without adapters is replaced by its original layer.

    Raises: ValueError: no adapter of that name.
    """
    for layer_name, layer in _layers_of_adapter(model, name).items():
        for each in (name, name + START_SUFFIX):
            if each in layer.A:
                layer.remove_update(each)
        if not layer.A:
            parent, _, child = layer_name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.base_layer)


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the adapters on a model."""
    return sorted({name for _, layer in _adapted_layers(model) for name in layer.A if not name.endswith(START_SUFFIX)})


def strengths(model: nn.Module) -> dict[str, dict[str, Any]]:
    """{layer: {adapter: strength}} of all adapters on a model; a list where each image has its own strength."""
    return {
        layer_name: {name: x.tolist() if isinstance(x, Tensor) else x for name, x in sorted(layer.strengths.items())}
        for layer_name, layer in _adapted_layers(model)
    }


@contextmanager
def applied(model: nn.Module, adapters: Iterable[tuple[Adapter, Strength]], fold: bool = True) -> Iterator[list[str]]:
    """Apply (adapter, strength) pairs to a model for the length of a `with`; yields their names.

    With `fold`, their sum is meanwhile folded into the weights, so that it costs nothing: not into a quantised weight,
    nor where rounding would change the update, nor if a GPU lacks the memory (`weight_folding`). At the end the
    original weight tensors are put back. Do not fold in a model that is offloaded: both copies of a weight would move.
    """
    names: list[str] = []
    names_in_use = set(adapter_names(model))
    try:
        for adapter, strength in adapters:
            name = next(n for k in range(len(names_in_use) + 1) if (n := f"qrlora{k}") not in names_in_use)
            names.append(name)
            names_in_use.add(name)
            apply(model, adapter, name, strength)
        _set_folding(model, fold)
        yield names
    finally:
        _set_folding(model, False)
        for name in names:
            if name in adapter_names(model):  # one that was refused is not
                detach(model, name)


def _set_folding(model: nn.Module, wanted: bool) -> None:
    """Switch folding on or off in all layers that adapters are applied to."""
    wanted = wanted and weight_folding.fits_in_gpu_memory(layer.weight for _, layer in _adapted_layers(model))
    for _, layer in _adapted_layers(model):
        layer.fold = wanted
        layer.update_frozen_sum()


def _check_can_add(model: nn.Module, items: Mapping[str, Any], name: str) -> None:
    """Check that a model can take an adapter of a name.

    Args:   items: {layer: an object with A (r, i) and B (o, r)}.
    Raises: ValueError: the name is taken or cannot be one; a layer is missing or has another shape.
    """
    if not name or "." in name or name.endswith(START_SUFFIX):
        raise ValueError(f"an adapter's name may not be empty, have a dot in it or end in {START_SUFFIX}: got {name!r}")
    if name in adapter_names(model):
        raise ValueError(f"an adapter named {name!r} is on the model already: detach it or choose another name")
    refuse_bypassed_layers(model, items)
    modules = dict(model.named_modules())
    for layer, item in items.items():
        linear = modules.get(f"{layer}.base_layer", modules.get(layer))
        if not isinstance(linear, nn.Linear):
            raise ValueError(f"the model has no linear layer {layer!r}: the adapter belongs to another base")
        shape, own = (len(item.B), item.A.shape[1]), (linear.out_features, linear.in_features)
        if shape != own:
            raise ValueError(f"{layer}: the adapter is for a weight {shape}, the base's is {own}: another base")


def _wrapped_layers(model: nn.Module, items: Mapping[str, Any]) -> Iterator[tuple[AdaptedLinear, Any]]:
    """(layer, item) of the named layers, each replaced by an AdaptedLinear once something has been added to it."""
    modules = dict(model.named_modules())
    for layer_name, item in items.items():
        found: Any = modules[layer_name]
        layer = found if isinstance(found, AdaptedLinear) else AdaptedLinear(found)
        layer.train(found.training)
        yield layer, item
        parent, _, child = layer_name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)  # only now that it has an update


def refuse_bypassed_layers(model: nn.Module, layers: Iterable[str]) -> None:
    """Raises ValueError: a layer that its parent never calls. torch's MultiheadAttention, and TransformerEncoderLayer
    without gradients, use the weights of their linear layers directly: an adapter there would have no effect."""
    modules = dict(model.named_modules())
    for layer in layers:
        parent = modules.get(layer.rpartition(".")[0])
        if isinstance(parent, nn.MultiheadAttention | nn.TransformerEncoderLayer):
            kind = type(parent).__name__
            raise ValueError(f"{layer}: torch's {kind} reads its weight and passes the layer by: no adapter acts there")


def _check_strengths(strengths: Iterable[Strength]) -> None:
    for strength in strengths:
        check_strengths(strength.flatten().tolist() if isinstance(strength, Tensor) else [strength])


def _adapted_layers(model: nn.Module) -> Iterator[tuple[str, AdaptedLinear]]:
    """(name, layer) of every layer with adapters."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, AdaptedLinear))


def _layers_of_adapter(model: nn.Module, name: str) -> dict[str, AdaptedLinear]:
    """(name, layer) of the layers that an adapter is applied to. Raises ValueError: none."""
    found = {layer_name: layer for layer_name, layer in _adapted_layers(model) if name in layer.A}
    if not found:
        raise ValueError(
            f"no adapter named {name!r} on the model; there are: {', '.join(adapter_names(model)) or 'none'}"
        )
    return found


def _factors_of_adapter(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """{"LAYER.A" or "LAYER.B": parameter} of an adapter and, with START_SUFFIX, of its subtracted start; sorted."""
    factors = {
        f"{layer_name}.{factor}{ending}": values[name + ending]
        for layer_name, layer in _layers_of_adapter(model, name).items()
        for factor, values in (("A", layer.A), ("B", layer.B))
        for ending in ("", START_SUFFIX)
        if name + ending in values
    }
    return dict(sorted(factors.items()))


def _copy_pair(layer: AdaptedLinear, name: str) -> Pair:
    """A copy of an applied adapter's A and B in one layer, on the CPU."""

    def copy(factor: Tensor) -> Tensor:
        return factor.detach().to("cpu", torch.float32, copy=True).contiguous()

    return Pair(A=copy(layer.A[name]), B=copy(layer.B[name]))
