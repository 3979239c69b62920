"""TOOLS: what each tool's own loader does with names, alphas and metadata.

The versions that were read: ComfyUI 0.3.64 (comfy/lora.py), diffusers 0.42.1 (loaders/lora_pipeline.py,
lora_conversion_utils.py), A1111 1.10 (extensions-builtin/Lora/networks.py, sd3_model.py), Forge of 2024
(sd_forge_lora/networks.py), kohya's sd-scripts 0.10 (networks/lora.py, lora_flux.py, lora_sd3.py). The rules for
diffusers are tested against the library itself.
"""

import collections

from ..keys import KOHYA_PREFIX, is_text_encoder
from .seen import File, Rule, not_our_content, of_lora

FLUX_SINGLE_ROWS = 21504
"""Outputs of linear1 in FLUX.1: 3 x 3072 + 12288; diffusers knows no other size."""
SGM = ("input_blocks", "middle_block", "output_blocks")
"""Blocks of SDXL's original UNet."""
FORGE_PATIENCE = 12
"""Forge lets so many keys pass that it does not know; above, it takes the file for another model's."""


def _is_kohya(file: File) -> bool:
    """Whether all keys are kohya's."""
    return all(key.startswith((KOHYA_PREFIX, "lora_te_", "lora_te1_", "lora_te2_")) for key in file.tensors)


def _attention(file: File, key: str) -> str:
    """ComfyUI's map of SDXL's UNet renames .to_ to .processor.to_, which only the oldest diffusers files have."""
    known = file.keys[key].spelling not in ("diffusers", "bare") or ".to_" not in file.keys[key].layers[0]
    return "" if known else "it looks for attention layers under kohya's names alone"


def _too_many_unknown(file: File) -> str:
    """Forge's limit, over ComfyUI's rules."""
    rule = TOOLS["comfyui"][file.family]
    unknown = sum(not of_lora(file, rule, key).factor for key in file.keys)
    if unknown > FORGE_PATIENCE:
        return f"{unknown} keys that it does not know, above {FORGE_PATIENCE}: it takes the file for another model's"
    return not_our_content(file)


def _alpha_in_a1111(file: File) -> str:
    return "it cannot split the names of alpha keys for SD3 and fails" if file.alphas else not_our_content(file)


def _picture_attention(file: File, key: str) -> str:
    """A1111's map of diffusers' SD3 names ends there; for the text's half it has a misspelt name."""
    known = (".attn.to_q", ".attn.to_k", ".attn.to_v", ".attn.to_out.0")
    kohya = file.keys[key].spelling == "kohya" or file.keys[key].layers[0].endswith(known)
    return "" if kohya else "of diffusers' names it knows those of the picture's attention alone"


def _without_alpha(file: File) -> str:
    """lora_flux.py and lora_sd3.py look every layer's alpha up."""
    missing = [name for name in file.ranks if name not in file.alphas]
    if missing and any(key.spelling == "kohya" for key in file.keys.values()):
        return f"it demands alpha keys here, {len(missing)} of {len(file.ranks)} layers have none"
    return not_our_content(file)


def _sdxl_in_diffusers(file: File) -> str:
    kohya = _is_kohya(file)
    if not kohya and any("lora" not in key for key in file.tensors):
        return "it refuses a file in which a name does not hold the word lora"
    if kohya and file.alphas and "lora_adapter_metadata" in file.metadata:
        return "it refuses alpha keys beside lora_adapter_metadata"
    if kohya and len(file.keys) < len([key for key in file.tensors if not is_text_encoder(key)]):
        return "it refuses a kohya file with names that it cannot translate"
    return not_our_content(file)


def _sd3_in_diffusers(file: File) -> str:
    alpha = any("lora" not in key for key in file.tensors)
    return "it refuses a file in which a name does not hold the word lora" if alpha else not_our_content(file)


def _flux_in_diffusers(file: File) -> str:
    single = [key for key in file.keys if key.endswith("linear1.lora_up.weight")]
    if any(len(file.tensors[key]) != FLUX_SINGLE_ROWS for key in single):
        return f"it takes linear1 for FLUX.1's, with {FLUX_SINGLE_ROWS} outputs, and fails"
    if any(key.spelling == "peft" for key in file.keys.values()):
        return "it takes base_model. names for another kind of file and fails"
    if file.alphas and not _has_down(file) and "lora_adapter_metadata" in file.metadata:
        return "it refuses alpha keys beside lora_adapter_metadata"
    return not_our_content(file)


def _mixed(file: File, key: str) -> str:
    """diffusers translates kohya's names for SDXL in files that hold nothing else, drops the original model's block
    names where there are diffusers' too, and loses the number of add_embedding_linear_1."""
    if file.keys[key].spelling != "kohya":
        return ""
    if "_add_embedding_" in key:
        return "it loses the number in this name, and with it the layer"
    if not _is_kohya(file):
        return "it translates kohya's names in files that hold nothing else"
    original, ours = (any(x in k for k in file.tensors for x in names) for names in (SGM, ("down_blocks", "up_blocks")))
    dropped = original and ours and any(x in key for x in SGM)
    return "it drops the original model's block names where there are diffusers' too" if dropped else ""


def _undone(file: File, key: str) -> str:
    """diffusers translates FLUX.1's original names where they end as kohya's do."""
    dotted = file.keys[key].spelling == "original" and not _has_down(file)
    return "it wants transformer. before the name, or kohya's endings" if dotted else ""


def _has_down(file: File) -> bool:
    """Whether diffusers takes the file for kohya's."""
    return any(".lora_down.weight" in key for key in file.tensors)


def _common_alpha(file: File, name: str) -> float:
    """alpha / r, but where alphas differ in a kohya SDXL file, attention layers get the commonest: the pattern that
    should tell them apart keeps a name that no layer has. Without any alpha, what the metadata says."""
    if not file.alphas:
        return file.right[name] if "lora_adapter_metadata" in file.metadata else 1.0
    if _has_down(file) and file.part == "transformer":
        return file.by_alpha(name)
    common = collections.Counter(file.alphas.values()).most_common(1)[0][0]
    confused = "_attn1_" in name or "_attn2_" in name
    return (common if confused else file.alphas.get(name, common)) / file.ranks[name]


_OF_MODEL = ("kohya", "original", "diffusers")
TOOLS: dict[str, dict[str, Rule]] = {
    "comfyui": {
        "sdxl": Rule((*_OF_MODEL, "processor", "bare"), ignores=_attention),
        "sd3": Rule((*_OF_MODEL, "peft")),
        "flux": Rule(_OF_MODEL),  # newer versions know bare paths too
    },
    "diffusers": {
        "sdxl": Rule(("kohya", "diffusers", "processor"), _sdxl_in_diffusers, _mixed, _common_alpha),
        "sd3": Rule(("diffusers",), _sd3_in_diffusers, strength=_common_alpha),
        "flux": Rule(_OF_MODEL, _flux_in_diffusers, _undone, _common_alpha),
    },
    "a1111": {
        "sdxl": Rule(("kohya",)),
        "sd3": Rule(("kohya", "diffusers"), _alpha_in_a1111, _picture_attention),
    },
    "forge": {
        "sdxl": Rule((*_OF_MODEL, "processor", "bare"), _too_many_unknown, _attention),
        "sd3": Rule((*_OF_MODEL, "peft"), _too_many_unknown),
        "flux": Rule(_OF_MODEL, _too_many_unknown),
    },
    "kohya": {
        "sdxl": Rule(("kohya",)),
        "sd3": Rule(("kohya",), _without_alpha),
        "flux": Rule(("kohya",), _without_alpha),
    },
}
"""Tool -> family -> rule; no row: the tool has no such models."""
TEXT_ENCODERS = {
    "comfyui": ("lora_te", "text_encoder"),
    "diffusers": ("lora_te", "text_encoder"),
    "a1111": ("lora_te",),
    "forge": ("lora_te", "text_encoder"),
    "kohya": ("lora_te",),
}
"""Tool -> the beginnings of text encoders' keys that it loads."""
