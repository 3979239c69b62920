"""Which of a pipeline's files of weights to read. Many repositories hold them twice, in 32 bits and, as the variant
fp16 (`diffusion_pytorch_model.fp16.safetensors`), in 16; some hold nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch

WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)"
    r"(?:\.([\w-]+?))?(?:-\d{5}-of-\d{5})?(?:\.([\w-]+))?\.safetensors"  # the second place: an older way to name shards
)
PREFERRED = {
    torch.float32: ("", "fp16", "bf16"),
    torch.bfloat16: ("bf16", "fp16", ""),
    torch.float16: ("fp16", "", "bf16"),
}
"""dtype -> variants, best first: half the bytes where half is kept, never a coarser number than the dtype's own if
there is another."""


def variant_of(name: str) -> str | None:
    """The variant that a file of weights is of, "" for the plain one; None: it holds no weights."""
    weights = WEIGHTS.fullmatch(name)
    return (weights[1] or weights[2] or "") if weights else None


def weight_files(folder: Path, variant: str) -> list[Path]:
    """A part's weights, one file or shards: of a variant, or the plain ones if the component lacks it."""
    of = {path: variant_of(path.name) for path in sorted(folder.glob("*.safetensors"))}
    return [path for path in of if of[path] == (variant if variant in of.values() else "")]


def file_variant(dtype: torch.dtype, files: Iterable[str], components: Iterable[str]) -> str | None:
    """The variant in which to read a pipeline, as diffusers does: components that lack it are read from plain files.

    Args:    files: names of a folder's or repository's files, as "unet/diffusion_pytorch_model.fp16.safetensors".
             components: the components whose weights are needed.
    Returns: a variant's name, "" for the plain files; None: none has every component.
    """
    found: dict[str, set[str]] = {component: set() for component in components}
    for file in files:
        component, _, name = file.rpartition("/")
        if component in found and (variant := variant_of(name)) is not None:
            found[component].add(variant)
    known = set().union(*found.values())
    for variant in (*PREFERRED[dtype], *sorted(known)):
        if variant in known and all(variant in there or "" in there for there in found.values()):
            return variant
    return None
