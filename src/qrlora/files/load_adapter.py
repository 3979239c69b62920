"""Load adapter files: our own, and plain LoRA files of kohya, diffusers, PEFT and the QR-LoRA authors' code.

Letters: o outputs, i inputs, r rank, A (r, i), B (o, r).
"""

import errno
import re
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..adapter import Adapter, Header, Pair
from ..basis import cache_folder, load_basis
from ..json_objects import parse_json_object
from ..lora_keys import is_text_encoder, natural, printable
from ..safetensors_files import read_metadata, read_safetensors
from .fused_layers import split_layers, swap_shift_and_scale
from .layer_names import Names, factors_of, refuse_unreadable_keys, understand_names
from .peft_config import finite_number, read_peft_config, refusal, subtract_peft_start
from .written_metadata import CONTENT, FUSED, HEADER

FOLDERS = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""What PEFT's and diffusers' own savers call the file in the folder that they write."""
NUMBERS = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)
"""What a factor may be stored as; each but float64 is exact in float32."""
AUTHORS = {"Q", "dR", "R"}
ORTHONORMAL = 2**-6
"""How far products of orthonormal rows may be from theirs once the rows were rounded to bfloat16."""


class Group(NamedTuple):
    """The keys of one name in a file: one layer, or those that the original model keeps in one."""

    keys: dict[str, str]
    """{kind: key}."""
    scale: float
    """What the update is multiplied by: alpha / r, 1 without alpha."""


def load(
    path: str | PathLike, skip_text_encoders: bool = False, weights: Callable[[str], Tensor] | None = None
) -> Adapter:
    """Load an adapter file of ours, or a plain LoRA of kohya, diffusers, PEFT or the authors' code, at strength 1.

    A foreign file becomes an adapter of method "lora", the authors' of "qr-triangular" or "qr-output"; alpha goes into
    B. Everything in the file is read, or nothing.

    Args:   path: a file, or a folder that PEFT or diffusers wrote.  skip_text_encoders: leave out the layers of text
            encoders (see count_text_encoder_keys), which no adapter of ours can hold, instead of refusing the file.
            weights: (layer) -> the base's weight (o, i), for a LoRA of PEFT whose start lies within it (pissa, olora).
    Raises: OSError: missing, a folder; a compact file whose basis is not in the cache.
            ValueError, one line with the path: a pickle, cut short, no LoRA, another kind of adapter (with how many
            keys of it were found), NaN or infinity (naming the layer), half a pair, another format version; a start
            within the weight that cannot be taken off it.
    """
    path = file_in(path)
    tensors, metadata = read_safetensors(path)
    if skip_text_encoders:
        tensors = {key: tensor for key, tensor in tensors.items() if not is_text_encoder(key)}
    try:
        header = Header.from_json(metadata[HEADER]) if HEADER in metadata else None
        factors, refused = factors_of(tensors)
        refuse_unreadable_keys(refused, len(tensors))
        names = understand_names(factors, tensors, metadata, header)
        if header and metadata.get(CONTENT) == "compact":
            return Adapter(_layers_of_compact_file(tensors, names, header), header)
        groups, start = group_keys_by_layer(path, tensors, metadata, names)
        layers = _pairs_of_plain_lora(tensors, groups, _parse_fused_ranks(metadata.get(FUSED, "{}")), names)
        if start:
            layers = _subtract_start(layers, groups, start, weights)
        return Adapter(layers, header or _foreign_header(layers, tensors, groups, names, metadata))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_header(path: str | PathLike) -> Header:
    """Read the header of an adapter file alone, without the matrices' values.

    Raises: as load; a file of another tool has no such header: ValueError.
    """
    metadata = read_metadata(path)
    if HEADER not in metadata:
        raise ValueError(f"{path}: was not written by qrlora and has no header of ours")
    try:
        return Header.from_json(metadata[HEADER])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def count_text_encoder_keys(path: str | PathLike) -> int:
    """How many keys of a file load(..., skip_text_encoders=True) leaves out. Raises as storage.read does."""
    return sum(map(is_text_encoder, read_safetensors(file_in(path))[0]))


def group_keys_by_layer(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], names: Names
) -> tuple[dict[tuple[str, ...], Group], str]:
    """{layers of one name: their keys, and the strength of their update}, in the model's order; and the start within
    the weight, if the file has one, by PEFT's name.

    Raises: ValueError, naming the layer: half a pair, factors of another shape than a matrix's or a convolution's,
            numbers that are no floats; see peft_config.read_peft_config.
    """
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for key, meaning in names.keys.items():
        found.setdefault(meaning.layers, {})[meaning.factor.kind] = key
    _check_matrices(tensors, found)
    config = read_peft_config(path, tensors, metadata, names.component)
    groups = {}
    for layers in sorted(found, key=lambda layers: natural(layers[0])):
        keys = found[layers]
        rank = len(tensors[keys.get("A") or keys["dR"]])
        alpha = alpha_of_tensor(tensors[keys["alpha"]], keys["alpha"]) if "alpha" in keys else None
        groups[layers] = Group(keys, config.scale(layers[0], rank) if alpha is None else alpha / rank)
    return groups, config.start


def alpha_of_tensor(tensor: Tensor, key: str) -> float:
    """The number in a loaded file's alpha key. Raises ValueError: several numbers, NaN or infinity."""
    if tensor.numel() != 1:
        raise ValueError(f"{printable(key)}: must be one number, got {tuple(tensor.shape)}")
    return finite_number(tensor.double().item(), printable(key))


def file_in(path: str | PathLike) -> Path:
    """The file itself, or the one in a folder that PEFT or diffusers wrote. Raises OSError: a folder without."""
    path = Path(path)
    found = next((path / name for name in FOLDERS if (path / name).is_file()), path)
    if found.is_dir():
        raise IsADirectoryError(
            f"{path}: a folder, in which is neither {' nor '.join(FOLDERS)}; give the adapter's file"
        )
    return found


def _check_matrices(tensors: Mapping[str, Tensor], found: Mapping[tuple[str, ...], Mapping[str, str]]) -> None:
    """Raises ValueError unless every name in a loaded file has the two matrices of a pair, or those of a convolution,
    in floats."""
    for layers, keys in found.items():
        factors = {kind: tensors[key] for kind, key in keys.items() if kind != "alpha"}
        depth = factors["A"].ndim if "A" in factors else 2
        B = factors.get("B")
        flat = any(x.ndim != depth or not x.numel() for x in factors.values()) or not 2 <= depth <= 5
        wide = B is not None and B.ndim > 2 and B[0, 0].numel() != 1  # a convolution's B has a kernel of one number
        if flat or wide or factors.keys() != {"A", "B"} and factors.keys() != AUTHORS:
            shapes = {kind: tuple(x.shape) for kind, x in factors.items()}
            raise ValueError(f"{printable(layers[0])}: needs two matrices A (r, i) and B (o, r), got {shapes}")
        for kind, x in factors.items():
            if x.dtype not in NUMBERS:
                raise ValueError(f"{printable(layers[0])}: {kind} holds {x.dtype}; a LoRA's numbers are floats")


def _pairs_of_plain_lora(
    tensors: Mapping[str, Tensor],
    groups: Mapping[tuple[str, ...], Group],
    fused: Mapping[str, list[int]],
    names: Names,
) -> dict[str, Pair]:
    """Load the layers of a plain LoRA, or of the authors' files, at strength 1, in the model's order.

    The authors' update is Q dR: their W_comp + Q (R + dR) is W + Q dR, so R is not needed. A convolution's A,
    (r, i, h, w), is the matrix (r, i h w).

    Args:   fused: what `fused_layers.fuse_layers` said, by name.
    Raises: ValueError: A and B of different rank, or what split_layers refuses.
    """
    layers: dict[str, Pair] = {}
    for together, (keys, scale) in groups.items():
        A, B = (tensors[keys.get(kind) or keys[theirs]].flatten(1) for kind, theirs in (("A", "dR"), ("B", "Q")))
        if len(A) != B.shape[1]:
            raise ValueError(f"{together[0]}: A must be (r, i) and B (o, r), got {tuple(A.shape)} and {tuple(B.shape)}")
        pair = Pair(A.float(), B.float() if scale == 1 else B.float() * scale)
        if names.layout and "B" in keys:
            pair = swap_shift_and_scale(pair, names.layout, together[0], names.keys[keys["B"]].spelling)
        name = names.keys[keys["B"]].factor.name if "B" in keys else ""
        found = {together[0]: pair}
        if len(together) > 1 and names.layout:
            found = split_layers(pair, names.layout, together, fused.get(name))
        twice = layers.keys() & found.keys()
        if twice:
            raise ValueError(f"{min(twice)}: is in the file twice, alone and together with others")
        layers.update(found)
    return {layer: layers[layer] for layer in sorted(layers, key=natural)}


def _parse_fused_ranks(text: str) -> dict[str, list[int]]:
    """{name: ranks} of fused layers, from a loaded file's metadata. Raises ValueError: something else."""
    found = parse_json_object(text, FUSED)
    for name, ranks in found.items():
        if not isinstance(ranks, list) or not all(type(x) is int and x >= 0 for x in ranks):
            raise ValueError(f"{FUSED} must hold ranks, got {ranks!r:.80} for {printable(name, 80)}")
    return found


def _subtract_start(
    layers: Mapping[str, Pair],
    groups: Mapping[tuple[str, ...], Group],
    start: str,
    weights: Callable[[str], Tensor] | None,
) -> dict[str, Pair]:
    """Load a LoRA whose start lies within the weight (PiSSA, OLoRA). Raises ValueError: no weights, or see
    subtract_peft_start."""
    if weights is None:
        raise ValueError(refusal(start))
    fused = next((names for names in groups if len(names) > 1), None)
    if fused:
        raise ValueError(f"init_lora_weights={start!r}: it began in one weight of {', '.join(fused)}; convert it there")
    return subtract_peft_start(layers, start, {names[0]: group.scale for names, group in groups.items()}, weights)


def _layers_of_compact_file(tensors: Mapping[str, Tensor], names: Names, header: Header) -> dict[str, Pair]:
    """Load the layers of a compact file, with the frozen directions from the basis cache.

    Raises: OSError: the basis is not in the cache.  ValueError: it does not have the file's layers.
    """
    if not re.fullmatch("[0-9a-f]{64}", header.basis):
        raise ValueError(f"the compact file's basis {header.basis!r:.80} is no digest")
    try:
        basis = load_basis(header.basis)
    except FileNotFoundError as error:
        missing = f"the compact file's basis {header.basis[:12]} is not in {cache_folder()}"
        hint = "copy it from the machine that wrote the file, or save there with content='full'"
        raise FileNotFoundError(errno.ENOENT, f"{missing}; {hint}", f"{header.basis}.safetensors") from error
    for key, tensor in tensors.items():
        if names.keys[key].factor.kind != "delta" or tensor.dtype not in NUMBERS:
            raise ValueError(
                f"{printable(key)}: a compact file holds the trained factors in floats, got {tensor.dtype}"
            )
    deltas = {names.keys[key].layers[0]: tensor.float() for key, tensor in tensors.items()}
    if deltas.keys() != basis.Q.keys():
        raise ValueError(f"{len(deltas)} layers, but its basis {header.basis[:12]} has {len(basis.Q)} others")
    layers = {}
    for layer in sorted(deltas, key=natural):
        Q, delta = basis.Q[layer], deltas[layer]
        layers[layer] = Pair(Q.T, delta) if basis.side == "input" else Pair(delta, Q)
    return layers


def _foreign_header(
    layers: Mapping[str, Pair],
    tensors: Mapping[str, Tensor],
    groups: Mapping[tuple[str, ...], Group],
    names: Names,
    metadata: Mapping[str, str],
) -> Header:
    """The header of a loaded file of another tool: what its metadata and names tell."""
    deltas = [tensors[group.keys["dR"]].float() for group in groups.values() if "dR" in group.keys]
    triangular = all(torch.equal(x, x.triu()) for x in deltas) and any(x.any() for x in deltas)
    own = "qr-triangular" if triangular else "qr-output"
    frozen = all(_is_orthonormal(pair.A) for pair in layers.values())
    kernels = {together[0]: list(tensors[x.keys["A"]].shape[2:]) for together, x in groups.items() if "A" in x.keys}
    return Header(
        family=names.layout.family if names.layout else "",
        component=names.component,
        base=metadata.get("ss_sd_model_name", ""),
        method=own if len(deltas) == len(groups) else "qr" if frozen and not deltas else "lora",
        rank=max(pair.rank for pair in layers.values()),
        trigger=metadata.get("modelspec.trigger_phrase", ""),
        endings=names.endings,
        kernels={layer: sides for layer, sides in kernels.items() if sides},
    )


def _is_orthonormal(A: Tensor) -> bool:
    """Whether a loaded A has orthonormal rows, or zeros, as far as 16 bits say, so that its method is qr. A LoRA that
    was trained freely has none such: its rows begin shorter than one, and at random."""
    products = A @ A.T
    lengths = products.diagonal()
    expected = torch.where(lengths < 0.5, 0.0, 1.0).diag()
    return bool(expected.any()) and bool((products - expected).abs().max() < ORTHONORMAL)
