"""The metadata that is written into a LoRA file for tools: ours, ModelSpec's, kohya's, diffusers'."""

import json
from collections.abc import Iterable, Mapping

from ..adapter import Header, Pair
from ..layouts import LAYOUTS, Layout, layouts_of

HEADER = "qrlora"
CONTENT = "qrlora.content"
FUSED = "qrlora.fused"
CONTENTS = ("full", "compact")


def layout_of(layers: Iterable[str], header: Header) -> Layout | None:
    """The backbone that a written file's metadata name: the header's, else the one that alone has such layers; None:
    unknown."""
    if header.family or header.endings:
        return LAYOUTS.get(header.family)
    fitting = layouts_of(f"{header.component}.{layer}" for layer in layers) if header.component else []
    return fitting[0] if len(fitting) == 1 else None


def metadata_to_write(
    layers: Mapping[str, Pair],
    header: Header,
    layout: Layout | None,
    content: str,
    style: str,
    fused: Mapping[str, list[int]],
) -> dict[str, str]:
    """The metadata of a file to write: ours, ModelSpec's and kohya's; diffusers' own only beside its own names.

    There is no date, so that equal adapters give equal bytes, and no name: tools take the file's.
    """
    largest = max(pair.rank for pair in layers.values())
    width = layout.width_of({layer: x.shape[1] for layer, x in layers.items()}) if layout else None
    variant = layout.variant_of(header.base, width, layers.keys()) if layout else None
    entries = {
        "format": "pt",
        HEADER: header.to_json(),
        CONTENT: content,
        FUSED: json.dumps(fused, sort_keys=True) if fused else "",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{variant.architecture}/lora" if variant else "",
        "modelspec.implementation": "diffusers",
        "modelspec.title": " ".join(filter(None, (header.role, header.trigger))) or header.method,
        "modelspec.trigger_phrase": header.trigger,
        "modelspec.tags": header.role,
        "modelspec.merged_from": ", ".join(x.get("trigger") or x.get("role") or "adapter" for x in header.parents),
        "ss_base_model_version": variant.base_version if variant else "",
        "ss_v2": "False",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(largest),
        "ss_network_alpha": str(largest),
        "ss_network_args": "{}",
        **(variant.metadata if variant else {}),
    }
    if style == "diffusers" and content == "full":
        entries["lora_adapter_metadata"] = _lora_adapter_metadata(layers, header.component or "unet", largest)
    return {name: value for name, value in entries.items() if value}


def _lora_adapter_metadata(layers: Mapping[str, Pair], component: str, largest: int) -> str:
    """The metadata lora_adapter_metadata of diffusers: LoraConfig's fields that every version of PEFT knows; alpha = r
    in every layer."""
    ranks = {layer: pair.rank for layer, pair in layers.items() if pair.rank != largest}
    config = {
        "r": largest,
        "lora_alpha": largest,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": list(layers),
        "use_dora": False,
        "lora_bias": False,
    }
    return json.dumps({f"{component}.{name}": value for name, value in config.items()})
