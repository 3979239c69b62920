"""Save adapters as files: full or compact, in the names of our own, diffusers, kohya or the original models.

Letters: o outputs, i inputs, r rank, A (r, i), B (o, r).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from .. import safetensors_files
from ..adapter import Adapter, Header, Pair
from ..basis import Basis, save_basis
from ..config.type_checks import ADAPTER_HINT, check_instance
from ..initialisation_methods import METHODS
from ..layouts import Layout
from ..linalg import is_finite
from ..lora_keys import WRITTEN
from .fused_layers import fuse_layers, swap_shift_and_scale
from .written_metadata import CONTENTS, layout_of, metadata_to_write

DIGEST_LENGTH = 64
"""Characters of a basis' digest."""


def save(
    adapter: Adapter,
    path: str | PathLike,
    content: str = "full",
    keys: str | None = None,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = True,
) -> None:
    """Save an adapter as a file, whole or not at all; equal adapters give equal bytes.

    Args:    content: a word of CONTENTS.  keys: a style of WRITTEN; None: what most tools of the family read, and for
             an unknown one the names as they are.  dtype: of the stored numbers, float32, float16 or bfloat16.
             overwrite: whether a file with another content may be replaced.
    Raises:  ValueError: unknown word, a layer the spelling cannot hold, a number too large for dtype,
             "compact" for a method that freezes nothing.  OSError: the file cannot be written, or not replaced.
    """
    check_instance("adapter", adapter, Adapter, ADAPTER_HINT)
    check_instance("dtype", dtype, torch.dtype, "such as torch.bfloat16")
    if not Path(path).name.endswith(".safetensors"):
        raise ValueError(f"{path}: the name must end in .safetensors")
    if content == "compact":
        basis = _frozen_basis(adapter.layers, adapter.header)
        try:
            save_basis(basis)
        except OSError as error:
            hint = "a compact file is read with its directions from the cache: set QRLORA_CACHE, or content='full'"
            raise OSError(error.errno, f"{error.strerror}; {hint}", error.filename) from error
        adapter = replace(adapter, header=replace(adapter.header, basis=basis.digest))
    tensors, entries = tensors_and_metadata(adapter.layers, adapter.header, content, keys, dtype)
    for key, tensor in tensors.items():
        if dtype != torch.float32 and not is_finite(tensor):
            raise ValueError(f"{key}: holds numbers too large for {dtype}; save as torch.float32 or torch.bfloat16")
    safetensors_files.write_safetensors(path, tensors, entries, overwrite)


def size_in_bytes(
    shapes: Mapping[str, tuple[int, int]],
    header: Header,
    content: str = "full",
    keys: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> int:
    """The size of the adapter file that `save` would write, from the shapes alone; no matrix is made.

    Args:   shapes {layer: (o, i)}; header.rank is every layer's rank.
    Raises: ValueError: as save.
    """
    r = header.rank
    layers = {
        layer: Pair(torch.empty(r, i, device="meta"), torch.empty(o, r, device="meta"))
        for layer, (o, i) in shapes.items()
    }
    if content == "compact":
        header = replace(header, basis="0" * DIGEST_LENGTH)
    tensors, entries = tensors_and_metadata(layers, header, content, keys, dtype)
    return safetensors_files.size_in_bytes({key: (x.dtype, x.shape) for key, x in tensors.items()}, entries)


def tensors_and_metadata(
    layers: Mapping[str, Pair], header: Header, content: str, keys: str | None, dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors by key and the metadata of a file to save. Raises ValueError as save does."""
    layout = layout_of(layers, header)
    style = keys or (next(iter(layout.written)) if layout else "" if header.endings else "diffusers")
    if content not in CONTENTS or (style and style not in WRITTEN):
        known = f"contents {', '.join(CONTENTS)}; keys {', '.join(WRITTEN)}"
        raise ValueError(f"cannot save content={content!r}, keys={keys!r}; there are {known}")
    if style and header.endings:
        raise ValueError(f"{next(iter(layers))}: of a model that qrlora has no names for: keep those of the file")
    fused = {}
    if content == "compact":
        side, component = _frozen_side(header), header.component or "unet"
        tensors = {f"{component}.{x}.delta": pair.B if side == "input" else pair.A for x, pair in layers.items()}
    elif not style:
        tensors = _verbatim_tensors(layers, header)
    else:
        tensors, fused = _spelled_tensors(layers, header, layout, style)
    stored = {key: x if key.endswith(".alpha") else x.to(dtype) for key, x in tensors.items()}
    return stored, metadata_to_write(layers, header, layout, content, style, fused)


def _verbatim_tensors(layers: Mapping[str, Pair], header: Header) -> dict[str, Tensor]:
    """A, B and alpha to save, if the file had one, under the names that another tool gave them."""
    tensors: dict[str, Tensor] = {}
    for layer, pair in layers.items():
        name = f"{header.component}.{layer}" if header.component else layer
        factors = (*_kernel_shaped(pair, header.kernels.get(layer)), torch.tensor(float(pair.rank)))
        tensors |= {name + ending: x for ending, x in zip(header.endings.split(), factors, strict=False)}
    return tensors


def _spelled_tensors(
    layers: Mapping[str, Pair], header: Header, layout: Layout | None, style: str
) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """The A and B to save by key, fused where the style's models keep layers in one; and the ranks of what was fused.
    No alpha but where the style's tools read no file without: a key more could only harm elsewhere."""
    groups: dict[tuple[str, tuple[str, ...]], dict[str, Pair]] = {}
    for layer, pair in layers.items():
        groups.setdefault(_spelled_name(layer, header, layout, style), {})[layer] = pair
    endings, tensors, fused = WRITTEN[style], {}, {}
    for (name, together), pairs in groups.items():
        layer, pair = next(iter(pairs.items()))
        if layout and len(together) > 1:
            pair, fused[name] = fuse_layers(pairs, layout, together)
        elif layout and style in layout.written:
            pair = swap_shift_and_scale(pair, layout, layer, layout.written[style])
        tensors[name + endings["A"]], tensors[name + endings["B"]] = _kernel_shaped(pair, header.kernels.get(layer))
        if layout and style in layout.with_alpha:
            tensors[name + endings["alpha"]] = torch.tensor(float(pair.rank))
    return tensors, fused


def _spelled_name(layer: str, header: Header, layout: Layout | None, style: str) -> tuple[str, tuple[str, ...]]:
    """The name under which a layer is saved in a style, and all layers that go by it.

    Raises: ValueError: the style cannot spell the layer so that it is read back as the same.
    """
    component = header.component or "unet"
    if style == "diffusers":
        return f"{component}.{layer}", (layer,)
    found = layout.spell(style, layer) if layout and layout.component == component and style in layout.written else None
    if found is None:
        of = f" of family {layout.family!r}" if layout else ""
        lacks = f"has no {style} name that is read back unchanged; use diffusers names"
        raise ValueError(f"{component}.{layer}{of}: {lacks}")
    return found


def _kernel_shaped(pair: Pair, kernel: Sequence[int] | None) -> tuple[Tensor, Tensor]:
    """A and B to save, shaped as a tool expects them: of a convolution (r, i, h, w) and (o, r, 1, 1)."""
    if not kernel:
        return pair.A, pair.B
    return pair.A.unflatten(1, (-1, *kernel)), pair.B.view(*pair.B.shape, *(1 for _ in kernel))


def _frozen_basis(layers: Mapping[str, Pair], header: Header) -> Basis:
    """The frozen directions, which a compact file is saved without. Raises ValueError: the method freezes nothing."""
    side = _frozen_side(header)
    Q = {layer: pair.directions(side).contiguous() for layer, pair in layers.items()}
    return Basis(Q, max(pair.rank for pair in layers.values()), side)


def _frozen_side(header: Header) -> str:
    """ "input" or "output": what a compact file is saved without. Raises ValueError: the method freezes nothing."""
    side = METHODS[header.method].frozen_side if header.method in METHODS else None
    if side is None:
        raise ValueError(f"method {header.method!r} freezes nothing to leave out; save with content='full'")
    return side
