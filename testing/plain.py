"""The plain way that the fast one is compared with: the same start, mask and frozen factors on PEFT's LoRA layers."""

import warnings

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn


def initialise(model, starts):
    """A method's start on PEFT's layers; {"LAYER.A" or "LAYER.B": parameter} of what learns, sorted."""
    rank, trainable = max(len(start.A) for start in starts.values()), {}
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(starts), bias="none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inject_adapter_in_model(config, model, "run")
        if any(start.subtract_start for start in starts.values()):
            inject_adapter_in_model(config, model, "beneath")
    model.requires_grad_(False)
    for name, start in starts.items():
        layer = model.get_submodule(name)
        _fill(layer, "run", start.A, start.B)
        if start.subtract_start:
            _fill(layer, "beneath", start.A, -start.B)
            layer.set_adapter(["run", "beneath"], inference_mode=True)
        for factor in start.trainable:
            weight = getattr(layer, f"lora_{factor}")["run"].weight.requires_grad_(True)
            if start.mask is not None:
                weight.register_hook(lambda gradient, mask=start.mask: gradient * mask)
            trainable[f"{name}.{factor}"] = weight
    return {key: trainable[key] for key in sorted(trainable)}


def apply(model, adapters, dtype=torch.float32):
    """(adapter, strength) pairs on PEFT's layers, one LoRA each, all active; factors of a dtype."""
    names = [f"plain{k}" for k in range(len(adapters))]
    for name, (adapter, _) in zip(names, adapters, strict=True):
        config = LoraConfig(r=adapter.rank, lora_alpha=adapter.rank, target_modules=list(adapter.layers), bias="none")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inject_adapter_in_model(config, model, name)
    for name, (adapter, _) in zip(names, adapters, strict=True):
        for layer_name, pair in adapter.layers.items():
            layer = model.get_submodule(layer_name)
            _fill(layer, name, pair.A, pair.B, dtype)
            layer.set_adapter(names, inference_mode=True)
    set_strengths(model, [strength for _, strength in adapters])


def set_strengths(model, strengths):
    """One for each adapter that `apply` put on, as set_adapters of diffusers does."""
    for layer in (module for module in model.modules() if isinstance(module, LoraLayer)):
        layer.scaling.update({f"plain{k}": strength for k, strength in enumerate(strengths)})


def detach(model):
    """The plain layers again."""
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, LoraLayer)]:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    del model.peft_config


def _fill(layer, name, A, B, dtype=torch.float32):
    for module, value in ((layer.lora_A[name], A), (layer.lora_B[name], B)):
        module.weight = nn.Parameter(value.detach().to(dtype, copy=True), requires_grad=False)
    layer.scaling[name] = 1.0
