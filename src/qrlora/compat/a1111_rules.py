"""What A1111 looks at beside the names of keys: 1.10.1's extensions-builtin/Lora and modules/models/sd3, run on every
spelling.

Of a UNet it takes what stands before a key's first dot for the layer, of SD3 what stands before the last but one.
"""

from ..lora_keys import printable
from .checked_file import CheckedFile

PAIRS = ({".lora_A.weight", ".lora_B.weight"}, {".lora_down.weight", ".lora_up.weight"})
"""The endings of the pairs that it knows."""
TOGETHER = (".attn.to_q", ".attn.to_k", ".attn.to_v")
IMAGE_ATTENTION = (*TOGETHER, ".attn.to_out.0")
UNNAMED = ("add_embedding.linear_1", "add_embedding.linear_2", "up_blocks.0.upsamplers.0.conv")
"""SDXL's layers whose diffusers' names its map, SD 1.5's, leads nowhere."""


def fails_on_unet(file: CheckedFile) -> str:
    """It raises an error where it finds a layer and no pair, and loads nothing then."""
    if any(x.spelling.startswith("diffusion_model.") for x in file.keys.values()):
        return "it takes diffusion_model for a layer, finds no pair for it and fails"
    return _fails_on_endings(file)


def _fails_on_endings(file: CheckedFile) -> str:
    """A pair has both factors in one tool's endings."""
    for name, endings in _endings(file).items():
        if name.startswith("lora_unet_") and not any(pair <= endings for pair in PAIRS):
            odd = min(endings - {".alpha"}, default=".alpha")
            return f"it knows no pair with the ending {odd} after such names and fails"
    return ""


def _endings(file: CheckedFile) -> dict[str, set[str]]:
    """{name: the endings that it has in a file}."""
    found: dict[str, set[str]] = {}
    for x in file.keys.values():
        found.setdefault(x.factor.name, set()).add(x.factor.ending)
    return found


def ignores_unnamed(file: CheckedFile, key: str) -> str:
    """The names of three layers."""
    meaning = file.keys[key]
    unnamed = meaning.spelling.endswith("{diffusers}") and meaning.layers[0] in UNNAMED
    return "it knows this layer by its original name alone" if unnamed else ""


def ignores_second_name_of_openclip(file: CheckedFile, key: str) -> str:
    """It leads the names that begin `lora_te1_` to CLIP's layers alone, which models of version 2 do not have."""
    assert file.layout is not None  # whose row this is
    factors = [(x.layers[0], key) for key, x in file.keys.items() if x.factor.kind == "A" and len(x.layers) == 1]
    width = file.layout.width_of({layer: file.tensors[key].shape[1] for layer, key in factors})
    second = [x for x in file.layout.variants.values() if x.metadata.get("ss_v2") == "True"]
    by_name = file.metadata.get("ss_base_model_version") in {x.base_version for x in second}
    is_second = by_name or file.metadata.get("ss_v2") == "True" or width in {x.width for x in second}
    lost = key.startswith("lora_te1_") and is_second
    return "of a model of version 2 it knows text encoder names that begin lora_te_ alone" if lost else ""


def fails_on_transformer(file: CheckedFile) -> str:
    """It splits every key at its last two dots, text encoders' and alpha keys too."""
    short = [key for key in file.tensors if key.count(".") < 2]
    return (
        f"it cannot split names with fewer than two dots, such as {printable(min(short))}, and fails" if short else ""
    )


def ignores_in_transformer(file: CheckedFile, key: str) -> str:
    """Its map of diffusers' names ends with the image stream's attention (what it has for the text's is misspelt), and
    it adds q, k and v of a block together or not at all."""
    assert file.layout is not None  # whose row this is
    meaning, (model, variant) = file.keys[key], next(iter(file.layout.variants.items()))
    block, number, *_ = (*meaning.layers[0].split("."), "")
    if ".attn2." in meaning.layers[0] or number.isdecimal() and int(number) >= variant.blocks.get(block, 0):
        return f"it has {model} alone, which has no such layer"
    if not any(pair <= _endings(file)[meaning.factor.name] for pair in PAIRS):
        return "it knows no pair with this ending"
    if meaning.spelling.startswith("lora_unet_"):
        return ""
    if not meaning.layers[0].endswith(IMAGE_ATTENTION):
        return "of diffusers' names it knows those of the image stream's attention alone"
    name = meaning.factor.name
    stem = next((name.removesuffix(x) for x in TOGETHER if name.endswith(x)), "")
    alone = stem and not all(stem + x in file.ranks for x in TOGETHER)
    return "it adds q, k and v of a block together or not at all" if alone else ""


def strength(file: CheckedFile, name: str) -> float:
    """alpha / r, but with names of several dots, whose alpha keys it does not find, 1."""
    return 1.0 if "." in name else file.by_alpha(name)
