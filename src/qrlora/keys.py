"""How a layer is spelt in a LoRA file: our own names, kohya's, diffusers', PEFT's, the authors'.

Letters: A (r, i) and B (o, r). Everything here is text; no tensor is touched.

A layer's name is its module's path in diffusers. FLUX.1's and SD3's original models keep q, k and v (and the MLP's
input) in one layer: a kohya key then stands for several of our layers, whose outputs lie below each other in its B.
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
    ".lora.q.weight": "Q",  # the authors' files
    ".lora.delta_r.weight": "dR",
    ".lora.base_r.weight": "R",
}
WRITTEN = {
    "kohya": {"A": ".lora_down.weight", "B": ".lora_up.weight", "alpha": ".alpha"},
    "diffusers": {"A": ".lora_A.weight", "B": ".lora_B.weight"},
}
"""The spellings that we write: the endings of A and B, and of alpha where the spelling's tools demand one."""
OTHER_METHODS = {
    "dora_scale": "a DoRA's",
    "lora_magnitude_vector": "a DoRA's",
    "hada_": "a LoHa's",
    "lokr_": "a LoKr's",
    "oft_": "an OFT's",
    "on_input": "an IA3's",
    "lora_mid": "a convolution's (LoCon)",
    "diff": "a full difference's, not a LoRA's",
    "w_norm": "a norm layer's",
    "b_norm": "a norm layer's",
    "bundle_emb": "an embedding's",
    "scaled_fp8": "of scaled fp8 numbers",
    "scale_weight": "of scaled fp8 numbers",
    "weight_scale": "of scaled fp8 numbers",
    "bias": "a bias's",
}
"""What is no plain LoRA, by a word in the key after the layer's name."""
PARTS = ("unet", "transformer")
PEFT_PREFIX = "base_model.model."
KOHYA_PREFIX = "lora_unet_"
ORIGINAL_PREFIX = "diffusion_model."
TEXT_ENCODERS = ("text_encoder", "lora_te")

_QKV, _ADDED = "attn.to_q attn.to_k attn.to_v", "attn.add_q_proj attn.add_k_proj attn.add_v_proj"
ORIGINAL = {  # family -> blocks -> (diffusers' blocks, {layer: diffusers' layers, top to bottom})
    "flux": {
        "double_blocks": (
            "transformer_blocks",
            {
                "img_attn_qkv": _QKV,
                "img_attn_proj": "attn.to_out.0",
                "img_mlp_0": "ff.net.0.proj",
                "img_mlp_2": "ff.net.2",
                "img_mod_lin": "norm1.linear",
                "txt_attn_qkv": _ADDED,
                "txt_attn_proj": "attn.to_add_out",
                "txt_mlp_0": "ff_context.net.0.proj",
                "txt_mlp_2": "ff_context.net.2",
                "txt_mod_lin": "norm1_context.linear",
            },
        ),
        "single_blocks": (
            "single_transformer_blocks",
            {"linear1": f"{_QKV} proj_mlp", "linear2": "proj_out", "modulation_lin": "norm.linear"},
        ),
    },
    "sd3": {  # without the modulation layers: the last block's has its halves swapped, and no name says which is last
        "joint_blocks": (
            "transformer_blocks",
            {
                "x_block_attn_qkv": _QKV,
                "x_block_attn_proj": "attn.to_out.0",
                "x_block_attn2_qkv": _QKV.replace("attn", "attn2"),
                "x_block_attn2_proj": "attn2.to_out.0",
                "x_block_mlp_fc1": "ff.net.0.proj",
                "x_block_mlp_fc2": "ff.net.2",
                "context_block_attn_qkv": _ADDED,
                "context_block_attn_proj": "attn.to_add_out",
                "context_block_mlp_fc1": "ff_context.net.0.proj",
                "context_block_mlp_fc2": "ff_context.net.2",
            },
        ),
    },
}
UNET = ("down_blocks", "up_blocks", "mid_block", "time_embedding", "add_embedding")
"""What alone has linear layers in a UNet of diffusers."""
EMBEDDINGS = {  # SDXL's own names: diffusers, reading kohya's, loses the number of its own "add_embedding"
    "time_embedding.linear_1": "time_embed_0",
    "time_embedding.linear_2": "time_embed_2",
    "add_embedding.linear_1": "label_emb_0_0",
    "add_embedding.linear_2": "label_emb_0_2",
}
COMPOUNDS = (  # names that hold an underscore themselves, in SDXL's UNet
    "down_blocks up_blocks mid_block transformer_blocks to_q to_k to_v to_out proj_in proj_out time_emb_proj "
    "time_embedding add_embedding linear_1 linear_2 "
    "input_blocks output_blocks middle_block"
).split()
_WORD = re.compile("|".join([*(f"{word}(?=_|$)" for word in COMPOUNDS), "[^_]+"]))
_BLOCK = re.compile(r"([a-z]+(?:_[a-z]+)*)[._](\d+)[._](.+)")


class Key(NamedTuple):
    """What a key of a file means."""

    part: str
    """"unet", "transformer", or "" where the key does not say."""
    layers: tuple[str, ...]
    """The layers it belongs to: one, or those that the original model keeps in one, top to bottom."""
    kind: str
    """"A", "B", "alpha"; "delta", the learnt factor of a compact file; "Q", "dR", "R" of the authors' files."""
    spelling: str
    """"diffusers" (part.path), "bare" (path), "peft" (base_model.model.path), "processor" (diffusers' old attention),
    "kohya" (lora_unet_path), "original" (diffusion_model.path)."""
    family: str
    """"flux" or "sd3" where the name gives it away, else ""."""


class UnreadableKey(ValueError):
    """A key that is no plain LoRA's of a UNet or transformer."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{printable(key)}: {reason}")
        self.reason = reason
        """The same for all keys that are refused for one cause."""


def printable(name: str, most: int = 200) -> str:
    """A name from a file as it can be shown: at most so many characters, those that steer a terminal escaped."""
    safe = "".join(x if x.isprintable() else x.encode("unicode_escape").decode() for x in name[:most])
    return safe if len(name) <= most else f"{safe}..."


def stem(style: str, part: str, layer: str, family: str = "") -> tuple[str, tuple[str, ...]]:
    """The name of a layer in a style of WRITTEN, without the ending, and all layers that go by that name.

    Raises: ValueError: the style cannot spell the layer so that it is read back as the same.
    """
    if style == "diffusers":
        return f"{part}.{layer}", (layer,)
    if part == "unet":
        flat = EMBEDDINGS.get(layer, layer.replace(".", "_"))
        if _part_of(layer) == "unet" and _from_kohya_unet(layer, flat) == layer:
            return f"{KOHYA_PREFIX}{flat}", (layer,)
    elif (match := _BLOCK.fullmatch(layer)) and family in ORIGINAL:
        blocks, number, inner = match.groups()
        for original, (theirs, layers) in ORIGINAL[family].items():
            for name, inside in layers.items() if theirs == blocks else ():
                if inner in inside.split():
                    together = tuple(f"{blocks}.{number}.{x}" for x in inside.split())
                    return f"{KOHYA_PREFIX}{original}_{number}_{name}", together
    kind = f" of family {family!r}" if family else ""
    raise ValueError(f"{part}.{layer}{kind}: has no kohya name that is read back unchanged; use diffusers names")


def spell(style: str, part: str, layer: str, kind: str, family: str = "") -> str:
    """The key of a layer's factor ("A", "B") in a style of WRITTEN. Raises as stem does."""
    return stem(style, part, layer, family)[0] + WRITTEN[style][kind]


def parse(key: str) -> Key:
    """What a key of any style of LoRA file means.

    Raises: UnreadableKey: a text encoder's layer, another kind of adapter, an unknown name.
    """
    if is_text_encoder(key):
        raise UnreadableKey(key, "adapts a text encoder; qrlora reads adapters of the UNet or transformer alone")
    ending = next((ending for ending in ENDINGS if key.endswith(ending)), None)
    if ending is None:
        words = key.partition(".")[2] if key.startswith(KOHYA_PREFIX) else ".".join(key.split(".")[-2:])
        method = next((name for word, name in OTHER_METHODS.items() if re.search(rf"(^|\.){word}", words)), "unknown")
        raise UnreadableKey(key, f"{method}; qrlora reads plain LoRA files, no DoRA, LoHa, LoKr or others")
    name, kind = key.removesuffix(ending), ENDINGS[ending]
    for prefix, spelling in ((KOHYA_PREFIX, "kohya"), (ORIGINAL_PREFIX, "original")):
        if name.startswith(prefix):
            return _from_original(key, name.removeprefix(prefix).replace(".", "_"), kind, spelling)
    spelling = "peft" if name.startswith(PEFT_PREFIX) else "processor" if ending.startswith("_lora") else "diffusers"
    name = name.removeprefix(PEFT_PREFIX)
    part = next((part for part in PARTS if name.startswith(f"{part}.")), "")
    layer = name.removeprefix(f"{part}.")
    if spelling == "processor":
        layer = re.sub(r"\.to_out$", ".to_out.0", layer.replace(".processor.", "."))
    elif not part and spelling == "diffusers":
        spelling = "bare"
    return Key(part or _part_of(layer), (layer,), kind, spelling, _family_of(layer))


def is_text_encoder(key: str) -> bool:
    """Whether a key belongs to a text encoder, in any style."""
    return key.startswith(TEXT_ENCODERS)


def natural(layer: str) -> list[tuple[int, str]]:
    """A sorting key that puts block 2 before block 10."""
    return [(int(x), "") if x.isdecimal() and x.isascii() else (-1, x) for x in layer.split(".")]


def _from_original(key: str, flat: str, kind: str, spelling: str) -> Key:
    """The meaning of a name with underscores: an original model's of ORIGINAL, or a UNet's."""
    match = _BLOCK.fullmatch(flat)
    for family, blocks in ORIGINAL.items():
        if match and match[1] in blocks:
            theirs, layers = blocks[match[1]]
            if match[3] not in layers:
                raise UnreadableKey(key, f"a layer of {family} that qrlora does not read")
            inside = layers[match[3]].split()
            return Key("transformer", tuple(f"{theirs}.{match[2]}.{x}" for x in inside), kind, spelling, family)
    return Key("unet", (_from_kohya_unet(key, flat),), kind, spelling, "")


def _from_kohya_unet(key: str, flat: str) -> str:
    """The module path behind a flat name; SDXL's original block names become diffusers' ones.

    SDXL's UNet has two layers a block: input block n is down block (n - 1) // 3, layer (n - 1) % 3,
    output block n is up block n // 3, layer n % 3; element 1 of each is its transformer.
    """
    if flat in EMBEDDINGS.values():
        return next(layer for layer, name in EMBEDDINGS.items() if name == flat)
    layer = ".".join(_WORD.findall(flat))
    if _part_of(layer) == "unet":
        return layer
    found = re.fullmatch(r"(?:(in|out)put_blocks\.([0-9]{1,2})|middle_block)\.1\.transformer_blocks\.(.+)", layer)
    if not found:
        raise UnreadableKey(key, "adapts a layer outside the UNet's blocks and SDXL's transformers")
    way, number, rest = found.groups()
    if way is None:
        return f"mid_block.attentions.0.transformer_blocks.{rest}"
    block, index = divmod(int(number) - (way == "in"), 3)
    return f"{'down' if way == 'in' else 'up'}_blocks.{block}.attentions.{index}.transformer_blocks.{rest}"


def _part_of(layer: str) -> str:
    """The part a bare module path belongs to, as diffusers names its blocks."""
    head = layer.split(".")[0]
    return "unet" if head in UNET else "transformer" if "blocks" in head else ""


def _family_of(layer: str) -> str:
    """The family that alone has blocks of this name in diffusers, else ""."""
    head = layer.split(".")[0]
    owners = [name for name, blocks in ORIGINAL.items() if head in {theirs for theirs, _ in blocks.values()}]
    return owners[0] if len(owners) == 1 else ""
