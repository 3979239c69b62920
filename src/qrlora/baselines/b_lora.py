"""B-LoRA (arXiv 2403.14572): content and style adapters on two different blocks of SDXL's UNet."""

from __future__ import annotations

from ..layouts.sdxl import B_LORA
from ..merging import merge
from .fusion_method import FusionInputs, FusionResult, check_family, sample_with_adapter

FAMILIES = ("sdxl",)


def b_lora(task: FusionInputs) -> FusionResult:
    """The content adapter's layers in one block and the style adapter's in the other: disjoint, nothing is summed.

    Raises: ValueError: not SDXL; an adapter without layers in its block.
    """
    check_family("b-lora", FAMILIES, task.base)
    parts = []
    for role, adapter in zip(("content", "style"), task.both, strict=True):
        inside = f"{B_LORA[role]}."
        if not any(layer.startswith(inside) for layer in adapter.layers):
            raise ValueError(f"the {role} adapter has no layer in {B_LORA[role]}: train it with targets=b-lora")
        parts.append(adapter.select(lambda layer, inside=inside: layer.startswith(inside)))
    return sample_with_adapter(task.base, merge(parts, task.weights, "stack"))
