"""Adapter files: one safetensors each, which ordinary tools load as a LoRA.

Letters: o outputs, i inputs, r rank, A (r, i), B (o, r).

Everything of ours lives in the header; there are no extra tensors and no alpha keys (a missing
alpha means scale 1 everywhere; present ones break some readers). Two contents: "full" (A and B)
and "compact" (the learnt factor alone, about half; it needs the frozen directions, found in the
basis cache by digest, and no other tool mistakes it for a LoRA).
"""

import errno
import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .adapter import Adapter, Header, Pair
from .basis import Basis, cache_folder, load_basis, save_basis
from .keys import PEFT_PREFIX, SPELLINGS, natural, parse, spell
from .linalg import is_finite
from .methods import METHODS
from .storage import read, read_metadata, write

HEADER = "qrlora"
CONTENT = "qrlora.content"
CONTENTS = ("full", "compact")


class Convention(NamedTuple):
    """What the tools of a family of models expect in a LoRA file."""

    keys: str
    """The spelling that most of them read, of keys.SPELLINGS."""
    architecture: str
    """ModelSpec's name."""
    base_version: str
    """kohya's name, by which A1111 sorts LoRAs."""


CONVENTIONS = {
    # ComfyUI ignores all attention layers of an SDXL LoRA in diffusers' names, so kohya's.
    "sdxl": Convention("kohya", "stable-diffusion-xl-v1-base/lora", "sdxl_base_v1-0"),
    "sd3": Convention("diffusers", "stable-diffusion-3-medium/lora", "sd3_m"),
    "flux": Convention("diffusers", "flux-1-dev/lora", "flux1"),
}


def save(
    adapter: Adapter,
    path: str | PathLike,
    content: str = "full",
    keys: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write an adapter file, whole or not at all; equal adapters give equal bytes.

    Args:    content: a word of CONTENTS.  keys: "kohya" or "diffusers"; None: what most tools of
             the family read.  dtype: of the stored numbers, float32, float16 or bfloat16.
    Raises:  ValueError: unknown word, a layer the spelling cannot hold, a number too large for dtype,
             "compact" for a method that freezes nothing.  OSError: the file cannot be written.
    """
    header = adapter.header
    convention = CONVENTIONS.get(header.family, Convention("diffusers", "", ""))
    style = keys or convention.keys
    if content not in CONTENTS or style not in SPELLINGS or not Path(path).name.endswith(".safetensors"):
        known = f"contents {', '.join(CONTENTS)}; keys {', '.join(SPELLINGS)}; names ending in .safetensors"
        raise ValueError(f"{path}: cannot save content={content!r}, keys={keys!r}; there are {known}")
    if content == "compact":
        basis, tensors = _split(adapter)
        save_basis(basis)
        adapter = replace(adapter, header=replace(header, basis=basis.digest))
    else:
        factors = {"A": lambda pair: pair.A, "B": lambda pair: pair.B}
        tensors = {
            spell(style, header.part or "unet", layer, kind): factor(pair)
            for layer, pair in adapter.layers.items()
            for kind, factor in factors.items()
        }
    stored = {key: tensor.to(dtype) for key, tensor in tensors.items()}
    for key, tensor in stored.items():
        if dtype != torch.float32 and not is_finite(tensor):
            raise ValueError(f"{key}: holds numbers too large for {dtype}; save as torch.float32 or torch.bfloat16")
    write(path, stored, _metadata(adapter, convention, content, style))


def load(path: str | PathLike) -> Adapter:
    """Read an adapter file of ours, or a plain LoRA of kohya, diffusers or PEFT, at strength 1.

    A foreign file becomes an adapter of method "lora"; its alpha goes into B.

    Raises: OSError: missing, a folder; a compact file whose basis is not in the cache.
            ValueError, one line with the path: a pickle, cut short, no LoRA, NaN or infinity (naming
            the layer), half a pair, another format version.
    """
    tensors, metadata = read(path)
    try:
        header = Header.from_json(metadata[HEADER]) if HEADER in metadata else Header()
        if metadata.get(CONTENT) == "compact":
            return Adapter(_joined(tensors, header), header)
        layers, part = _pairs(Path(path), tensors, metadata)
        return Adapter(layers, header if HEADER in metadata else _foreign_header(layers, part, metadata))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_header(path: str | PathLike) -> Header:
    """The header alone, without the matrices' values.

    Raises: as load; a file of another tool has no such header: ValueError.
    """
    metadata = read_metadata(path)
    if HEADER not in metadata:
        raise ValueError(f"{path}: was not written by qrlora and has no header of ours")
    try:
        return Header.from_json(metadata[HEADER])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _split(adapter: Adapter) -> tuple[Basis, dict[str, Tensor]]:
    """A compact file's two halves: the frozen directions as a Basis, and the learnt factors.

    Raises: ValueError: the method freezes nothing.
    """
    header = adapter.header
    side = METHODS[header.method].frozen_side if header.method in METHODS else None
    if side is None:
        raise ValueError(f"method {header.method!r} freezes nothing to leave out; save with content='full'")
    Q = {layer: pair.directions(side).contiguous() for layer, pair in adapter.layers.items()}
    learnt = {layer: pair.B if side == "input" else pair.A for layer, pair in adapter.layers.items()}
    part = header.part or "unet"
    return Basis(Q, adapter.rank, side), {f"{part}.{layer}.delta": factor for layer, factor in learnt.items()}


def _joined(tensors: Mapping[str, Tensor], header: Header) -> dict[str, Pair]:
    """The layers of a compact file, with the frozen directions from the basis cache.

    Raises: OSError: the basis is not in the cache.  ValueError: it does not have the file's layers.
    """
    try:
        basis = load_basis(header.basis)
    except FileNotFoundError as error:
        missing = f"the compact file's basis {header.basis[:12]} is not in {cache_folder()}"
        way_out = "copy it from the machine that wrote the file, or save there with content='full'"
        raise FileNotFoundError(errno.ENOENT, f"{missing}; {way_out}", f"{header.basis}.safetensors") from error
    deltas = {parse(key).layer: tensor.float() for key, tensor in tensors.items()}
    if deltas.keys() != basis.Q.keys():
        raise ValueError(f"{len(deltas)} layers, but its basis {header.basis[:12]} has {len(basis.Q)} others")
    layers = {}
    for layer in sorted(deltas, key=natural):
        Q, delta = basis.Q[layer], deltas[layer]
        layers[layer] = Pair(Q.T, delta) if basis.side == "input" else Pair(delta, Q)
    return layers


def _pairs(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[dict[str, Pair], str]:
    """The layers of a plain LoRA at strength 1, in the model's order, and their part.

    Raises: ValueError: no layers, a key that is not a LoRA's, half a pair, a convolution, two parts.
    """
    found: dict[str, dict[str, Tensor]] = {}
    parts = set()
    for key, tensor in tensors.items():
        part, layer, kind = parse(key)
        parts.add(part)
        found.setdefault(layer, {})[kind] = tensor
    if len(parts) != 1:
        raise ValueError(f"an adapter changes one part of a pipeline, this file has {sorted(parts) or 'no layers'}")
    part = parts.pop()
    config = _lora_config(path, tensors, metadata, part)
    layers = {}
    for layer in sorted(found, key=natural):
        A, B, alpha = (found[layer].get(kind) for kind in ("A", "B", "alpha"))
        if A is None or B is None or A.ndim != 2 or B.ndim != 2:
            shapes = {kind: tuple(tensor.shape) for kind, tensor in found[layer].items()}
            raise ValueError(f"{layer}: needs two matrices A (r, i) and B (o, r), got {shapes}")
        scale = _scale(layer, len(A), config) if alpha is None else float(alpha.float().mean()) / len(A)
        layers[layer] = Pair(A.float(), B.float() if scale == 1 else B.float() * scale)
    return layers, part


def _lora_config(path: Path, tensors: Mapping, metadata: Mapping[str, str], part: str) -> dict[str, Any]:
    """What PEFT or diffusers wrote about alphas, by LoraConfig's names; empty where nothing was.

    Raises: ValueError: PEFT's adapter_config.json is missing or unreadable; a DoRA.
    """
    beside = path.with_name("adapter_config.json")
    try:
        if any(key.startswith(PEFT_PREFIX) for key in tensors):
            config = json.loads(beside.read_text(encoding="utf-8"))
        else:
            entries = json.loads(metadata.get("lora_adapter_metadata", "{}"))
            config = {name.removeprefix(f"{part}."): value for name, value in entries.items()}
    except FileNotFoundError as error:
        raise ValueError(f"a PEFT file keeps its strength in {beside}, which is missing; put it there") from error
    if config.get("use_dora"):
        raise ValueError("a DoRA's update is not B A alone; qrlora reads plain LoRA files")
    return config


def _scale(layer: str, rank: int, config: Mapping[str, Any]) -> float:
    """PEFT's scale: alpha / r, or alpha / sqrt(r) for rsLoRA; a pattern matches a name's end; 1 without alpha."""

    def by_pattern(name: str, default: float) -> float:
        patterns = config.get(name) or {}
        return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", layer)), default)

    if "lora_alpha" not in config:
        return 1.0
    alpha = by_pattern("alpha_pattern", config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _foreign_header(layers: Mapping[str, Pair], part: str, metadata: Mapping[str, str]) -> Header:
    """What another tool's metadata tells."""
    version = metadata.get("ss_base_model_version", "").split("_")[0]
    families = [name for name, x in CONVENTIONS.items() if version and x.base_version.startswith(version)]
    return Header(
        family=families[0] if families else "",
        part=part,
        base=metadata.get("ss_sd_model_name", ""),
        rank=max(pair.rank for pair in layers.values()),
        trigger=metadata.get("modelspec.trigger_phrase", ""),
    )


def _metadata(adapter: Adapter, convention: Convention, content: str, style: str) -> dict[str, str]:
    """The file's metadata: ours, ModelSpec's and kohya's; diffusers' own only beside its own names.

    There is no date, so that equal adapters give equal bytes, and no name: tools take the file's.
    """
    header, rank = adapter.header, str(adapter.rank)
    entries = {
        "format": "pt",
        HEADER: header.to_json(),
        CONTENT: content,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": convention.architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": " ".join(filter(None, (header.role, header.trigger))) or header.method,
        "modelspec.trigger_phrase": header.trigger,
        "modelspec.tags": header.role,
        "modelspec.merged_from": ", ".join(x.get("trigger") or x.get("role") or "adapter" for x in header.parents),
        "ss_base_model_version": convention.base_version,
        "ss_v2": "False",
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": rank,
        "ss_network_args": "{}",
    }
    if style == "diffusers" and content == "full":
        entries["lora_adapter_metadata"] = _diffusers_metadata(adapter)
    return {name: value for name, value in entries.items() if value}


def _diffusers_metadata(adapter: Adapter) -> str:
    """LoraConfig's fields that every version of PEFT knows; alpha = r in every layer."""
    part = adapter.header.part or "unet"
    ranks = {layer: pair.rank for layer, pair in adapter.layers.items() if pair.rank != adapter.rank}
    config = {
        "r": adapter.rank,
        "lora_alpha": adapter.rank,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": list(adapter.layers),
        "use_dora": False,
        "lora_bias": False,
    }
    return json.dumps({f"{part}.{name}": value for name, value in config.items()})
