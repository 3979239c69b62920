"""How a layer is spelt in a LoRA file: our own names, kohya's, diffusers', PEFT's.

Letters: A (r, i) and B (o, r). Everything here is text; no tensor is touched.
"""

import re
from typing import NamedTuple

ENDINGS = {
    ".lora_A.weight": "A",  # PEFT, diffusers
    ".lora_B.weight": "B",
    ".lora_A.default.weight": "A",  # PEFT's state dict with the adapter's name left in
    ".lora_B.default.weight": "B",
    ".lora.down.weight": "A",  # diffusers' SDXL script
    ".lora.up.weight": "B",
    "_lora.down.weight": "A",  # diffusers' old attention processors: ...attn1.processor.to_q_lora.down.weight
    "_lora.up.weight": "B",
    ".lora_down.weight": "A",  # kohya
    ".lora_up.weight": "B",
    ".alpha": "alpha",
    ".delta": "delta",  # our compact files
}
PARTS = ("unet", "transformer")
PEFT_PREFIX = "base_model.model."
KOHYA_PREFIX = "lora_unet_"
TEXT_ENCODERS = ("text_encoder", "lora_te")
COMPOUNDS = (  # names that hold an underscore themselves, in SDXL's UNet
    "down_blocks up_blocks mid_block transformer_blocks to_q to_k to_v to_out proj_in proj_out time_emb_proj "
    "time_embedding add_embedding linear_1 linear_2 "
    "input_blocks output_blocks middle_block"
).split()
_WORD = re.compile("|".join([*(f"{word}(?=_|$)" for word in COMPOUNDS), "[^_]+"]))


class Key(NamedTuple):
    """What a key of a file means."""

    part: str
    """"unet", "transformer", or "" where the key does not say."""
    layer: str
    kind: str
    """"A", "B", "alpha", or "delta": the learnt factor of a compact file."""


def spell(style: str, part: str, layer: str, kind: str) -> str:
    """The key of a layer's factor ("A", "B") in a style of SPELLINGS.

    Raises: ValueError: the style cannot spell the layer so that it is read back as the same.
    """
    return SPELLINGS[style](part, layer, kind)


def parse(key: str) -> Key:
    """What a key of any style of LoRA file means.

    Raises: ValueError, naming the key: a text encoder's layer, another kind of adapter, an unknown name.
    """
    if key.startswith(TEXT_ENCODERS):
        raise ValueError(f"{key}: adapts a text encoder; qrlora reads adapters of the UNet or transformer alone")
    ending = next((ending for ending in ENDINGS if key.endswith(ending)), None)
    if ending is None:
        raise ValueError(f"{key}: not the name of a LoRA's matrix; qrlora reads plain LoRA files (no LoKr, LoHa, DoRA)")
    name, kind = key.removesuffix(ending), ENDINGS[ending]
    if name.startswith(KOHYA_PREFIX):
        return Key("unet", _from_kohya(key, name.removeprefix(KOHYA_PREFIX)), kind)
    name = name.removeprefix(PEFT_PREFIX)
    part = next((part for part in PARTS if name.startswith(f"{part}.")), "")
    layer = name.removeprefix(f"{part}.")
    if ending.startswith("_lora"):
        layer = re.sub(r"\.to_out$", ".to_out.0", layer.replace(".processor.", "."))
    return Key(part or _part_of(layer), layer, kind)


def _kohya(part: str, layer: str, kind: str) -> str:
    """lora_unet_<module path with underscores>; ComfyUI, A1111 and diffusers read it for SDXL."""
    flat = layer.replace(".", "_")
    if part != "unet" or _from_kohya(layer, flat) != layer:
        raise ValueError(f"{part}.{layer}: has no kohya name that is read back unchanged; save with keys='diffusers'")
    return f"{KOHYA_PREFIX}{flat}.{ {'A': 'lora_down', 'B': 'lora_up'}[kind] }.weight"


def _diffusers(part: str, layer: str, kind: str) -> str:
    """<part>.<module path>.lora_A.weight."""
    return f"{part}.{layer}.lora_{kind}.weight"


SPELLINGS = {"kohya": _kohya, "diffusers": _diffusers}


def natural(layer: str) -> list[tuple[int, str]]:
    """A sorting key that puts block 2 before block 10."""
    return [(int(x), "") if x.isdigit() else (-1, x) for x in layer.split(".")]


def _from_kohya(key: str, flat: str) -> str:
    """The module path behind a flat name; SDXL's original block names become diffusers' ones.

    SDXL's UNet has two layers a block: input block n is down block (n - 1) // 3, layer (n - 1) % 3,
    output block n is up block n // 3, layer n % 3; element 1 of each is its transformer.
    """
    layer = ".".join(_WORD.findall(flat))
    head, _, rest = layer.partition(".transformer_blocks.")
    names = head.split(".")
    if names[0] not in ("input_blocks", "output_blocks", "middle_block"):
        return layer
    if not rest or names[1 if names[0] == "middle_block" else 2 :] != ["1"]:
        raise ValueError(f"{key}: adapts a layer outside SDXL's transformers, which qrlora does not read")
    if names[0] == "middle_block":
        return f"mid_block.attentions.0.transformer_blocks.{rest}"
    block, index = divmod(int(names[1]) - (names[0] == "input_blocks"), 3)
    side = "down_blocks" if names[0] == "input_blocks" else "up_blocks"
    return f"{side}.{block}.attentions.{index}.transformer_blocks.{rest}"


def _part_of(layer: str) -> str:
    """The part a bare module path belongs to, as diffusers names its blocks."""
    head = layer.split(".")[0]
    return "unet" if head in ("down_blocks", "up_blocks", "mid_block") else "transformer" if "blocks" in head else ""
