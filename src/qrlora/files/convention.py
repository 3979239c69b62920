"""What the tools of a family of models expect in a LoRA file beside the matrices."""

import json
from collections.abc import Mapping
from typing import NamedTuple

from ..adapter import Header, Pair

HEADER = "qrlora"
CONTENT = "qrlora.content"
FUSED = "qrlora.fused"
CONTENTS = ("full", "compact")


class Convention(NamedTuple):
    """One row of CONVENTIONS."""

    keys: str
    """The spelling that most of them read, of keys.WRITTEN."""
    architecture: str
    """ModelSpec's name."""
    base_version: str
    """kohya's name, by which A1111 sorts LoRAs."""
    other_versions: tuple[str, ...] = ()
    """Beginnings of kohya's other names of the family's models."""


CONVENTIONS = {
    # ComfyUI ignores all attention layers of an SDXL LoRA in diffusers' names, so kohya's.
    "sdxl": Convention("kohya", "stable-diffusion-xl-v1-base/lora", "sdxl_base_v1-0", ("sdxl",)),
    # diffusers cannot read kohya's names for SD3, ComfyUI reads both.
    "sd3": Convention("diffusers", "stable-diffusion-3-medium/lora", "medium", ("5-medium", "5-large", "sd3")),
    # kohya's names for FLUX.1 would cost three times the rank for q, k and v.
    "flux": Convention("diffusers", "flux-1-dev/lora", "flux1", ("flux",)),
}
UNKNOWN = Convention("diffusers", "", "")


def convention_of(header: Header) -> Convention:
    """The family's row, or one that promises nothing."""
    return CONVENTIONS.get(header.family, UNKNOWN)


def family_of(metadata: Mapping[str, str]) -> str:
    """The family that another tool's metadata tells, or ""."""
    version = metadata.get("ss_base_model_version", "").lower()
    for name, known in CONVENTIONS.items():
        if version.startswith((known.base_version, *known.other_versions)):
            return name
    return ""


def metadata(
    layers: Mapping[str, Pair], header: Header, content: str, style: str, fused: Mapping[str, list[int]]
) -> dict[str, str]:
    """The file's metadata: ours, ModelSpec's and kohya's; diffusers' own only beside its own names.

    There is no date, so that equal adapters give equal bytes, and no name: tools take the file's.
    """
    known, largest = convention_of(header), max(pair.rank for pair in layers.values())
    entries = {
        "format": "pt",
        HEADER: header.to_json(),
        CONTENT: content,
        FUSED: json.dumps(fused, sort_keys=True) if fused else "",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": known.architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": " ".join(filter(None, (header.role, header.trigger))) or header.method,
        "modelspec.trigger_phrase": header.trigger,
        "modelspec.tags": header.role,
        "modelspec.merged_from": ", ".join(x.get("trigger") or x.get("role") or "adapter" for x in header.parents),
        "ss_base_model_version": known.base_version,
        "ss_v2": "False",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(largest),
        "ss_network_alpha": str(largest),
        "ss_network_args": "{}",
    }
    if style == "diffusers" and content == "full":
        entries["lora_adapter_metadata"] = _diffusers_metadata(layers, header.part or "unet", largest)
    return {name: value for name, value in entries.items() if value}


def _diffusers_metadata(layers: Mapping[str, Pair], part: str, largest: int) -> str:
    """LoraConfig's fields that every version of PEFT knows; alpha = r in every layer."""
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
    return json.dumps({f"{part}.{name}": value for name, value in config.items()})
