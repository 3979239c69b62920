"""How a factor's key in a LoRA file is made: a layer's name, which layouts/ know, and an ending.

Letters: A (r, i) and B (o, r). Everything here is text; no tensor is touched.
"""

import re
from typing import NamedTuple

from .layouts import STYLES

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
KOHYA = {"A": ".lora_down.weight", "B": ".lora_up.weight", "alpha": ".alpha"}
DIFFUSERS = {"A": ".lora_A.weight", "B": ".lora_B.weight"}
WRITTEN = {style: DIFFUSERS if style in ("diffusers", "original") else KOHYA for style in STYLES}
"""Style of names that we write -> the endings of A, B and, where the style's tools know it, alpha."""
OTHER_METHODS = {
    "dora_scale": "a DoRA's",
    "lora_magnitude_vector": "a DoRA's",
    "hada_": "a LoHa's",
    "lokr_": "a LoKr's",
    "oft_": "an OFT's",
    "on_input": "an IA3's",
    "lora_mid": "a convolution's that is taken apart in three (LoCon with CP decomposition)",
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
PEFT_PREFIX = "base_model.model."
FLAT = re.compile(r"(lora|lycoris)_[^.]+\.")
"""How a key begins whose layer's name holds no dot."""
TEXT_ENCODERS = ("text_encoder", "lora_te", "lycoris_text_model", "lora_prior_te")


class Factor(NamedTuple):
    """A key taken apart, without knowledge of the backbone."""

    name: str
    """The layer's, in the file's words."""
    kind: str
    """"A", "B", "alpha"; "delta", the trained factor of a compact file; "Q", "dR", "R" of the authors' files."""
    ending: str


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


def factor_of(key: str) -> Factor:
    """A key of any LoRA file, taken apart: the layer's name, the factor A, B or alpha, and the ending.

    Raises: UnreadableKey: a text encoder's layer, another kind of adapter.
    """
    if is_text_encoder(key):
        raise UnreadableKey(key, "adapts a text encoder; qrlora reads adapters of the UNet or transformer alone")
    ending = next((ending for ending in ENDINGS if key.endswith(ending)), None)
    if ending is not None and key != ending:
        return Factor(key.removesuffix(ending), ENDINGS[ending], ending)
    words = key.partition(".")[2] if FLAT.match(key) else ".".join(key.split(".")[-2:])
    if re.fullmatch(r"\w+:\d+:(up|down|rank|alpha)", key):
        raise UnreadableKey(key, "numbers the layers instead of naming them (cloneofsimo's lora); convert it there")
    method = next(
        (name for word, name in OTHER_METHODS.items() if re.search(rf"(^|\.){word}", words) or key.startswith(word)),
        "unknown",
    )
    raise UnreadableKey(key, f"{method}; qrlora reads plain LoRA files, no DoRA, LoHa, LoKr or others")


def is_text_encoder(key: str) -> bool:
    """Whether a key belongs to a text encoder, in any style."""
    return key.startswith(TEXT_ENCODERS)


def natural(layer: str) -> list[tuple[int, str]]:
    """A sorting key that puts block 2 before block 10."""
    return [(int(x), "") if x.isdecimal() and x.isascii() else (-1, x) for x in layer.split(".")]
