"""A model in a dtype, but for the modules that diffusers and transformers keep in float32."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn


def cast_model(model: Any, dtype: torch.dtype) -> nn.Module:
    """A model on any device in a dtype, as its library's `from_pretrained` opens it: the modules that its class names
    (`_keep_in_fp32_modules`: norms of Krea 2 and Wan; of transformers' models, in float16 alone, T5's `wo`) are in
    float32."""
    from diffusers import ModelMixin

    may_keep = isinstance(model, ModelMixin) or dtype == torch.float16
    nn.Module.to(model, dtype)  # not diffusers' own `to`, which warns of what is put right here
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if may_keep and tensor.is_floating_point() and is_kept_in_float32(model, name):
            tensor.data = tensor.data.float()
    return model


def is_kept_in_float32(model: Any, name: str) -> bool:
    """Whether a parameter or buffer is in a module whose class's library may keep it in float32."""
    kept: Collection[str] = getattr(model, "_keep_in_fp32_modules", None) or ()
    return not {*name.split(".")}.isdisjoint(kept)
