"""Adapter <-> live model, on PEFT's plain LoRA layers. Works on any module with linear layers inside.

An adapter's update is added beside each layer, W x + strength B A x; no base weight is touched, so strength 0 and a
fresh start are the base bit for bit. Letters: o outputs, i inputs, r rank.

Dtypes, decided here and nowhere else: A and B are float32 on the layer's device, whatever the base's dtype. PEFT casts
what enters A to float32 and the layer's sum back to the base's dtype.
"""

from __future__ import annotations

import functools
import sys
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..adapter import Adapter, Header, Pair
from ..methods import Start

SUBTRACTED = "__start"
"""Ending of the name under which a start that is to be subtracted, -B_0 A_0, sits beside the factors that learn."""


def attach(model: nn.Module, adapter: Adapter, name: str, strength: float = 1.0) -> None:
    """Put an adapter on a model; several add up.

    Args:    name: under which it is found again; not a part of any layer's name.
    Raises:  ValueError: the name is taken, the model lacks a layer, or a layer has another shape.
    """
    _inject(model, adapter.layers, name)
    for layer in _layers(model, name).values():
        layer.requires_grad_(False)
    set_strengths(model, {name: strength})


def begin(model: nn.Module, starts: Mapping[str, Start], name: str) -> list[nn.Parameter]:
    """Put a method's start on a model and make its learning factors learn, those and nothing else.

    Args:    starts: {layer: Start}.
    Returns: the learning factors in the order of `learning_factors`.
    Raises:  ValueError: as `attach`.
    """
    _inject(model, {layer: Pair(s.A, s.B) for layer, s in starts.items()}, name)
    subtracted = {layer: Pair(s.A, -s.B) for layer, s in starts.items() if s.subtract_start}
    if subtracted:
        _inject(model, subtracted, name + SUBTRACTED)
        for layer in _layers(model, name + SUBTRACTED).values():
            # the start must not learn: PEFT forgets a plain requires_grad at every set_adapter
            _freeze(layer, name + SUBTRACTED, ("lora_A", "lora_B"))
    model.requires_grad_(False)
    for layer_name, layer in _layers(model, name).items():
        start = starts[layer_name]
        _freeze(layer, name, tuple(f"lora_{factor}" for factor in "AB" if factor not in start.learns))
        active = [name, name + SUBTRACTED] if start.subtract_start else [name]
        layer.set_adapter([*_others(layer, active), *active])
        _only_learning(layer, active)
        if start.mask is not None:
            weight = getattr(layer, f"lora_{start.learns[0]}")[name].weight
            # a zero gradient is a zero step for every optimizer that starts at zero
            weight.register_hook(functools.partial(torch.mul, start.mask.to(weight.device)))
    factors = learning_factors(model, name)
    expected = {f"{layer}.{factor}" for layer, start in starts.items() for factor in start.learns}
    assert set(factors) == expected, "a frozen factor learns, or a learning one is frozen"
    return list(factors.values())


def learning_factors(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """{"LAYER.A" or "LAYER.B": parameter} of the factors of an adapter that get gradients, sorted by name."""
    factors = {
        f"{layer_name}.{factor}": getattr(layer, f"lora_{factor}")[name].weight
        for layer_name, layer in _layers(model, name).items()
        for factor in "AB"
    }
    return {key: factors[key] for key in sorted(factors) if factors[key].requires_grad}


def lift(model: nn.Module, name: str, header: Header) -> Adapter:
    """A copy of an adapter that lives on a model, on the CPU. A subtracted start makes it [A; A_0], [B, -B_0].

    Raises: ValueError: no such adapter, or NaN or infinity in it.
    """
    start = {layer_name: _pair(layer, name + SUBTRACTED) for layer_name, layer in _find(model, name + SUBTRACTED)}
    layers = {}
    for layer_name, layer in _layers(model, name).items():
        pair = _pair(layer, name)
        if layer_name in start:
            beneath = start[layer_name]
            pair = Pair(A=torch.cat([pair.A, beneath.A]), B=torch.cat([pair.B, beneath.B], dim=1))
        layers[layer_name] = pair
    return Adapter(layers=layers, header=header)


def set_strengths(model: nn.Module, strengths: Mapping[str, float]) -> None:
    """Change how strongly adapters on a model act, in place and at once.

    Raises: ValueError: no adapter of that name.
    """
    for name, strength in strengths.items():
        for layer in _layers(model, name).values():
            layer.scaling[name] = float(strength)


def set_layer_strengths(model: nn.Module, name: str, strengths: Mapping[str, float]) -> None:
    """Change how strongly an adapter acts in each of some of its layers, in place and at once.

    Raises: ValueError: no adapter of that name, or not on that layer.
    """
    layers = _layers(model, name)
    for layer_name, strength in strengths.items():
        if layer_name not in layers:
            raise ValueError(f"the adapter {name!r} is not on the layer {layer_name!r}")
        layers[layer_name].scaling[name] = float(strength)


@contextmanager
def gated(model: nn.Module, name: str, gates: Mapping[str, Tensor]) -> Iterator[None]:
    """For the length of a `with`, an adapter reads its inputs times a gate (i,): its A is A diag(gate)."""
    handles = []
    try:
        for layer_name, layer in _layers(model, name).items():
            hook = functools.partial(_times, gates[layer_name])
            handles.append(layer.lora_A[name].register_forward_pre_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _times(gate: Tensor, _module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0] * gate, *inputs[1:])


def detach(model: nn.Module, name: str) -> None:
    """Take an adapter off a model. A layer without adapters becomes the plain layer that it was.

    Raises: ValueError: no adapter of that name.
    """
    _layers(model, name)
    for each in (name, name + SUBTRACTED):
        for layer_name, layer in list(_find(model, each)):
            if len(layer.lora_A) > 1:
                with warnings.catch_warnings():  # PEFT tells which adapter acts next; below we say it
                    warnings.simplefilter("ignore", UserWarning)
                    layer.delete_adapter(each)
                layer.set_adapter(sorted(layer.lora_A), inference_mode=True)
            else:
                parent, _, child = layer_name.rpartition(".")
                setattr(model.get_submodule(parent), child, layer.get_base_layer())
        configs = getattr(model, "peft_config", {})
        configs.pop(each, None)
    if not getattr(model, "peft_config", True):
        del model.peft_config


def attached(model: nn.Module) -> list[str]:
    """Names of the adapters on a model."""
    return sorted({name for _, layer in _lora_layers(model) for name in layer.lora_A if SUBTRACTED not in name})


@contextmanager
def worn(model: nn.Module, adapters: Iterable[tuple[Adapter, float]]) -> Iterator[list[str]]:
    """(adapter, strength) pairs on a model for the length of a `with`; yields their names."""
    names: list[str] = []
    taken = set(attached(model))
    try:
        for adapter, strength in adapters:
            name = next(n for k in range(len(taken) + 1) if (n := f"qrlora{k}") not in taken)
            names.append(name)
            taken.add(name)
            attach(model, adapter, name, strength)
        yield names
    finally:
        for name in names:
            if name in attached(model):  # a refused one is not
                detach(model, name)


def _inject(model: nn.Module, pairs: Mapping[str, Pair], name: str) -> None:
    """PEFT layers around the named linear layers, filled with A and B; alpha = r, so that the scale is 1."""
    from peft import LoraConfig, inject_adapter_in_model

    if name in attached(model):
        raise ValueError(f"an adapter named {name!r} is on the model already: detach it or choose another name")
    _check_layers(model, pairs)
    rank = max(pair.rank for pair in pairs.values())
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(pairs), bias="none")
    before = {id(layer): list(layer.active_adapters) for _, layer in _lora_layers(model)}
    learning = {p for p in model.parameters() if p.requires_grad}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")  # several adapters are the point
        warnings.filterwarnings("ignore", ".*get_apply_tensor_subclass")  # for merging into int8, which we never do
        inject_adapter_in_model(config, model, name, low_cpu_mem_usage=True)
    for layer_name, layer in _layers(model, name).items():
        _fill(layer, name, pairs[layer_name])
    for _, layer in _lora_layers(model):  # PEFT has switched off what acted, also where the new adapter is not
        layer.set_adapter([*before.get(id(layer), []), *([name] if name in layer.lora_A else [])])
    for parameter in model.parameters():  # PEFT marks whatever it meets; only what learned before still learns
        parameter.requires_grad_(parameter in learning)


def _fill(layer: Any, name: str, pair: Pair) -> None:
    """A and B into one PEFT layer. Ranks may differ between layers; PEFT's patterns for that cost a regular expression
    for each pair of layers, so the rank is simply set here."""
    home = layer.get_base_layer().weight.device
    layer.r[name] = layer.lora_alpha[name] = pair.rank
    for module, value in ((layer.lora_A[name], pair.A), (layer.lora_B[name], pair.B)):
        module.weight = nn.Parameter(value.detach().to(home, torch.float32, copy=True).contiguous())
        module.out_features, module.in_features = value.shape


def _check_layers(model: nn.Module, pairs: Mapping[str, Pair]) -> None:
    modules = dict(model.named_modules())
    for layer, pair in pairs.items():
        module = modules.get(f"{layer}.base_layer", modules.get(layer))
        if not isinstance(module, nn.Linear):
            raise ValueError(f"the model has no linear layer {layer!r}: the adapter belongs to another base")
        shape = (module.out_features, module.in_features)
        if pair.shape != shape:
            raise ValueError(f"{layer}: the adapter is for a weight {pair.shape}, the base's is {shape}: another base")


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name, PEFT layer) of every layer that carries adapters."""
    from peft.tuners.lora import LoraLayer

    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))


def _find(model: nn.Module, name: str) -> Iterator[tuple[str, Any]]:
    return ((layer_name, layer) for layer_name, layer in _lora_layers(model) if name in layer.lora_A)


def _layers(model: nn.Module, name: str) -> dict[str, Any]:
    found = dict(_find(model, name))
    if not found:
        raise ValueError(f"no adapter named {name!r} on the model; there are: {', '.join(attached(model)) or 'none'}")
    return found


def _others(layer: Any, names: list[str]) -> list[str]:
    return [x for x in layer.active_adapters if x not in names]


def _freeze(layer: Any, name: str, factors: tuple[str, ...]) -> None:
    """Register factors that PEFT keeps frozen through every set_adapter; needs peft 0.20."""
    # a new dict on each layer: the class attribute is one dict for all
    layer.frozen_peft_weight_names = {**layer.frozen_peft_weight_names, name: factors}


def _only_learning(layer: Any, names: list[str]) -> None:
    for other in _others(layer, names):
        layer.lora_A[other].requires_grad_(False)
        layer.lora_B[other].requires_grad_(False)


def _pair(layer: Any, name: str) -> Pair:
    def copy(factor: Any) -> Tensor:
        return factor[name].weight.detach().to("cpu", torch.float32, copy=True).contiguous()

    return Pair(A=copy(layer.lora_A), B=copy(layer.lora_B))


class _Room(types.ModuleType):
    """`qrlora.attach` is this room and, called, its front door: a package has one thing of each name."""

    def __call__(self, model: nn.Module, targets: Any, rank: int, **how: Any) -> Any:
        """As `module.attach`."""
        from . import module

        return module.attach(model, targets, rank, **how)


sys.modules[__name__].__class__ = _Room
