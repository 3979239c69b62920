"""QUIRKS: what the loaders of ComfyUI, A1111, diffusers, kohya and musubi look at beside the names of keys, by the
words that the rows of layouts use.

The versions that were read: ComfyUI 0.3.64 (comfy/lora.py), diffusers 0.42.1 (loaders/lora_pipeline.py,
lora_conversion_utils.py), A1111 1.10.1 (a1111_rules.py), Forge of 2025 (sd_forge_lora/networks.py), kohya's sd-scripts
0.10 (networks/lora.py, lora_flux.py, lora_sd3.py). The rules for diffusers are tested against the library itself.
"""

import collections
from collections.abc import Callable
from typing import NamedTuple

from ..lora_keys import is_text_encoder
from . import a1111_rules
from .checked_file import CheckedFile

LORA_UNET = "lora_unet_"
SGM = ("input_blocks", "middle_block", "output_blocks")
"""Blocks of a UNet in its authors' code."""
OURS = ("down_blocks", "up_blocks")
"""Those of diffusers."""


def _no_reason(file: CheckedFile, key: str = "") -> str:
    return ""


class Quirk(NamedTuple):
    """A row of QUIRKS; each function gives a reason, or "" where there is none."""

    refuses: Callable[[CheckedFile], str] = _no_reason
    """Why the tool loads nothing of a file at all."""
    ignores: Callable[[CheckedFile, str], str] = _no_reason
    """Why it passes over a key whose spelling it knows."""
    ignores_text_encoder: Callable[[CheckedFile, str], str] = _no_reason
    """Why it passes over a text encoder's key that begins as it knows."""


def _is_kohya(file: CheckedFile) -> bool:
    """Whether all keys are kohya's."""
    return all(key.startswith((LORA_UNET, "lora_te_", "lora_te1_", "lora_te2_")) for key in file.tensors)


def _comfyui_unet_attention(file: CheckedFile, key: str) -> str:
    """ComfyUI's map of a UNet renames .to_ to .processor.to_, which only the oldest diffusers files have."""
    prefix, _, kind = file.keys[key].spelling.partition("{")
    dotted = kind == "diffusers}" and not prefix.endswith("_")
    known = not dotted or ".to_" not in file.keys[key].layers[0]
    return "" if known else "it looks for attention layers under kohya's names alone"


def _kohya_needs_alpha(file: CheckedFile) -> str:
    """kohya's lora_flux.py and lora_sd3.py look every layer's alpha up."""
    missing = [name for name in file.ranks if name not in file.alphas]
    if missing and any(key.spelling.startswith(LORA_UNET) for key in file.keys.values()):
        return f"it demands alpha keys here, {len(missing)} of {len(file.ranks)} layers have none"
    return ""


def _diffusers_word_lora(file: CheckedFile) -> str:
    """diffusers' loader looks for the word "lora" in every name, kohya's SDXL files aside."""
    if _is_kohya(file) and file.component == "unet" or all("lora" in key for key in file.tensors):
        return ""
    return "it refuses a file in which a name does not hold the word lora"


def _diffusers_kohya_whole(file: CheckedFile) -> str:
    """diffusers' loader translates a kohya file whole, or refuses it."""
    if _is_kohya(file) and file.alphas and "lora_adapter_metadata" in file.metadata:
        return "it refuses alpha keys beside lora_adapter_metadata"
    if _is_kohya(file) and len(file.keys) < len([key for key in file.tensors if not is_text_encoder(key)]):
        return "it refuses a kohya file with names that it cannot translate"
    return ""


def _diffusers_public_sizes(file: CheckedFile) -> str:
    """diffusers takes what holds a wider layer beside others apart by the public model's numbers of outputs."""
    layout = file.layout
    for key, meaning in file.keys.items():
        if layout and meaning.factor.kind == "B" and len(file.tensors[key]):
            widths = {variant.width for variant in layout.variants.values()}
            rows = {sum(layout.heights(meaning.layers, width).values()) for width in widths}
            wider = any(x.rpartition(".")[2] in layout.outputs for x in meaning.layers) and len(meaning.layers) > 1
            if wider and len(file.tensors[key]) not in rows:
                return f"it takes {meaning.factor.name.rpartition('_')[2]} for one with {max(rows)} outputs, and fails"
    return ""


def _peft(file: CheckedFile) -> str:
    peft = any(key.spelling.startswith("base_model.") for key in file.keys.values())
    return "it takes base_model. names for another kind of file and fails" if peft else ""


def _alpha_or_metadata(file: CheckedFile) -> str:
    both = file.alphas and not has_down(file) and "lora_adapter_metadata" in file.metadata
    return "it refuses alpha keys beside lora_adapter_metadata" if both else ""


def _alpha_or_prefix(file: CheckedFile) -> str:
    """diffusers' translators put the component before every name, once more if it is there."""
    named = any(key.spelling.startswith(f"{file.component}.") for key in file.keys.values())
    return "it takes no alpha keys beside transformer. names" if file.alphas and named else ""


def _diffusers_bare_names(file: CheckedFile, key: str) -> str:
    """diffusers' loader wants a prefix before names of its own."""
    translated = file.alphas or any("default." in x for x in file.tensors)
    return (
        "it wants transformer. before the name" if file.keys[key].spelling == "{diffusers}" and not translated else ""
    )


def _diffusers_original_attention(file: CheckedFile, key: str) -> str:
    """diffusers splits flat names with kohya's endings; of original names with dots it knows `out` with these endings
    and what is called the same in both."""
    spelling, layers = file.keys[key].spelling, file.keys[key].layers
    flat, split = spelling.startswith(LORA_UNET), len(layers) > 1
    if flat and not has_down(file):
        return "it takes flat names with kohya's endings alone"
    if not spelling.endswith("{original}") or (file.layout and not split and file.layout.has_one_name(layers[0])):
        return ""
    known = not _musubi_outside_blocks(file, key) and (flat or not split and has_down(file))
    return "" if known else "it wants the original model's names flat, those of blocks alone"


def _diffusers_mixed_names(file: CheckedFile, key: str) -> str:
    """diffusers translates kohya's names for SDXL in files that hold nothing else, drops the original model's block
    names where there are diffusers' too, and loses the number of add_embedding_linear_1."""
    if not file.keys[key].spelling.startswith(LORA_UNET):
        return ""
    if "_add_embedding_" in key:
        return "it loses the number in this name, and with it the layer"
    if not _is_kohya(file):
        return "it translates kohya's names in files that hold nothing else"
    original, ours = (any(x in k for k in file.tensors for x in names) for names in (SGM, OURS))
    dropped = original and ours and any(x in key for x in SGM)
    return "it drops the original model's block names where there are diffusers' too" if dropped else ""


def _translated(file: CheckedFile) -> bool:
    """Whether diffusers translates a file for a model that has one set of names: other tools' names, or alpha."""
    return bool(file.alphas) or any(x.spelling.startswith((LORA_UNET, "diffusion_model.")) for x in file.keys.values())


def _diffusers_flat_layers(file: CheckedFile, key: str) -> str:
    """diffusers takes flat names apart at each underscore but those of an older model's layers."""
    layer = file.keys[key].layers[0]
    lost = file.keys[key].spelling.startswith(LORA_UNET) and ("_layer" in layer or layer.startswith("modulation"))
    return "it takes this flat name apart at too many underscores" if lost else ""


def _diffusers_kohya_endings(file: CheckedFile) -> str:
    """diffusers' loader knows kohya's endings in files that it translates, and fails where others are left."""
    if not has_down(file):
        return ""
    if not _translated(file):
        return "it refuses lora_down after its own names without alpha keys"
    return "it refuses lora_A beside lora_down" if any(".lora_A.weight" in key for key in file.tensors) else ""


def _diffusers_prefix_twice(file: CheckedFile, key: str) -> str:
    """In files that it translates, diffusers' loader puts transformer. before every name, also its own; else it passes
    over names without it."""
    spelling = file.keys[key].spelling
    if spelling.startswith("transformer.") and _translated(file):
        return "it puts transformer. before it once more, since the file has alpha keys or other tools' names"
    bare = spelling.startswith("{") and not _translated(file)
    return "it wants transformer. before the name, or alpha keys" if bare else ""


def _diffusers_wan_prefixes(file: CheckedFile) -> str:
    """diffusers takes the beginning off all names alike: diffusion_model., where a block must be adapted, else
    lora_unet_, where all layers of each block must be."""
    dotted = [x.spelling.startswith("diffusion_model.") for x in file.keys.values()]
    flat = [x.spelling.startswith(LORA_UNET) for x in file.keys.values()]
    blocks = {layer for x in file.keys.values() for layer in x.layers if layer.startswith("blocks.")}
    if any(dotted):
        mixed = "it takes the beginning diffusion_model. off every name, also off others"
        return mixed if not all(dotted) else "" if blocks else "it wants a block in files with diffusion_model. names"
    if not any(flat):
        return ""
    each = collections.Counter(layer.split(".")[1] for layer in blocks)
    whole = all(flat) and len(file.alphas) == len(file.ranks) and len(blocks) == len(file.ranks)
    in_block = sum(layer.startswith("blocks.#.") for layer in file.layout.names.values()) if file.layout else 0
    numbered = {*each} == {*map(str, range(len(each)))} and {*each.values()} == {in_block}
    return "" if whole and numbered else "it wants all layers of each block with alpha keys in musubi-tuner's names"


def _untranslated_names(file: CheckedFile, key: str) -> str:
    """diffusers translates original names with dots where they end as kohya's do."""
    dotted = file.keys[key].spelling == "diffusion_model.{original}" and not has_down(file)
    return "it wants transformer. before the name, or kohya's endings" if dotted else ""


def _musubi_outside_blocks(file: CheckedFile, key: str) -> str:
    """musubi-tuner makes modules for the layers of the model's blocks."""
    blocks = {x for variant in file.layout.variants.values() for x in variant.blocks} if file.layout else set()
    inside = all(layer.partition(".")[0] in blocks for layer in file.keys[key].layers)
    return "" if inside else "it adapts the layers of blocks alone"


def _diffusers_flat_with_kohya(file: CheckedFile, key: str) -> str:
    """diffusers looks in a file with kohya's endings for flat names, in others for those with dots."""
    flat = file.keys[key].spelling.startswith(LORA_UNET)
    if flat and any(key.startswith(f"{LORA_UNET}{name}") for name in ("guidance_in", "double_stream", "single_stream")):
        return "it has no flat name for this layer"
    if flat and "adaLN_modulation" in key:
        return "it has no flat name for this layer"
    return "" if flat == has_down(file) else "it takes flat names with kohya's endings, and those with dots with PEFT's"


def _dotted_alpha(file: CheckedFile) -> str:
    return "it takes alpha keys beside kohya's endings alone" if file.alphas and not has_down(file) else ""


def _comfyui_modulation(file: CheckedFile, key: str) -> str:
    """ComfyUI's map of diffusers' names has those of the family before for embedders, and no shared modulation."""
    named = any("time_guidance_embed" in x or "stream_modulation" in x for x in file.keys[key].layers)
    ours = file.keys[key].spelling.endswith("{diffusers}")
    return "of diffusers' names it lacks those of the time's embedder and of the modulation" if named and ours else ""


def _diffusers_krea2_original_names(file: CheckedFile) -> str:
    """diffusers translates a Krea 2 file with such a prefix whole: PEFT's endings, original names, nothing else."""
    prefixed = [x for x in file.keys.values() if x.spelling.startswith(("diffusion_model.", "base_model.model."))]
    if file.alphas and (prefixed or all("lora" in key for key in file.keys)):
        return "it takes no alpha keys of this family"
    if prefixed and any(not x.spelling.endswith("{original}") for x in file.keys.values()):
        return "it translates files that hold nothing but original names"
    return "it takes original names with PEFT's endings alone" if prefixed and has_down(file) else ""


def has_down(file: CheckedFile) -> bool:
    """Whether diffusers takes the file for kohya's."""
    return any(".lora_down.weight" in key for key in file.tensors)


QUIRKS = {
    "attention in kohya names": Quirk(ignores=_comfyui_unet_attention),
    "pairs after one dot": Quirk(refuses=a1111_rules.fails_on_unet),
    "the older UNet's map": Quirk(ignores=a1111_rules.ignores_unnamed),
    "OpenCLIP's names": Quirk(ignores_text_encoder=a1111_rules.ignores_second_name_of_openclip),
    "two dots": Quirk(refuses=a1111_rules.fails_on_transformer, ignores=a1111_rules.ignores_in_transformer),
    "original names alone": Quirk(refuses=_diffusers_krea2_original_names),
    "kohya's endings flat": Quirk(ignores=_diffusers_flat_with_kohya),
    "alpha beside down": Quirk(refuses=_dotted_alpha),
    "no modulation": Quirk(ignores=_comfyui_modulation),
    "blocks alone": Quirk(ignores=_musubi_outside_blocks),
    "alpha everywhere": Quirk(refuses=_kohya_needs_alpha),
    "the word lora": Quirk(refuses=_diffusers_word_lora),
    "whole kohya files": Quirk(refuses=_diffusers_kohya_whole),
    "kohya files alone": Quirk(ignores=_diffusers_mixed_names),
    "public sizes": Quirk(refuses=_diffusers_public_sizes),
    "no PEFT names": Quirk(refuses=_peft),
    "alpha or metadata": Quirk(refuses=_alpha_or_metadata),
    "alpha or transformer": Quirk(refuses=_alpha_or_prefix),
    "original attention": Quirk(ignores=_diffusers_original_attention),
    "bare beside alpha": Quirk(ignores=_diffusers_bare_names),
    "transformer or down": Quirk(ignores=_untranslated_names),
    "one tool's names": Quirk(refuses=_diffusers_wan_prefixes),
    "no flat names of gates": Quirk(ignores=_diffusers_flat_layers),
    "transformer. alone": Quirk(refuses=_diffusers_kohya_endings, ignores=_diffusers_prefix_twice),
}


def diffusers_alpha_factor(file: CheckedFile, name: str) -> float:
    """diffusers: alpha / r, but where alphas differ in a kohya SDXL file, attention layers get the commonest: the
    pattern that should tell them apart keeps a name that no layer has. Without any alpha, what the metadata says. In a
    transformer's file with kohya's endings the alphas of diffusers' names are passed over, but for flat names."""
    if not file.alphas:
        return file.right[name] if "lora_adapter_metadata" in file.metadata else 1.0
    if has_down(file) and file.component == "transformer":
        translated = (key for key in file.keys.values() if key.factor.name == name)
        spelling = next(translated).spelling
        return file.by_alpha(name) if spelling.endswith("{original}") or spelling.startswith(LORA_UNET) else 1.0
    common = collections.Counter(file.alphas.values()).most_common(1)[0][0]
    confused = "_attn1_" in name or "_attn2_" in name
    return (common if confused else file.alphas.get(name, common)) / file.ranks[name]


STRENGTHS: dict[str, Callable[[CheckedFile, str], float]] = {
    "diffusers": diffusers_alpha_factor,
    "a1111": a1111_rules.strength,
}
"""Tool -> at which strength it applies the layer of a name; others take alpha / r, or 1 without alpha."""
EVERY_FILE: dict[str, int] = {"forge": 12}
"""Tool -> how many keys it lets pass that it does not know; above, it takes the file for another model's."""
TEXT_ENCODERS = {
    "comfyui": ("lora_te", "text_encoder"),
    "diffusers": ("lora_te", "text_encoder"),
    "a1111": ("lora_te",),
    "forge": ("lora_te", "text_encoder"),
    "kohya": ("lora_te",),
}
"""Tool -> the beginnings of text encoders' keys that it loads."""
