"""Tensor files on disk: whole or not at all, read only if they are safetensors.  [safetensors]"""

import contextlib
import json
import math
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .output_files import atomic, reserve_space

DTYPE_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.uint8: "U8",
}
FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""dtypes of a model's weights in files."""
PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
Shapes = Mapping[str, tuple[torch.dtype, Sequence[int]]]
HEADER_LIMIT = 32_000_000
"""Bytes of names and metadata beyond which a file is refused: the largest base models have 2 MB."""
CHUNK_BYTES = 1 << 20
"""Bytes of a file that are summed at once: the cache of a processor holds them."""


class TensorLocation(NamedTuple):
    """A tensor's dtype as the file writes it, its shape, and the byte in the file that it starts at."""

    dtype: str
    shape: tuple[int, ...]
    start: int


def write_safetensors(
    path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], overwrite: bool = True
) -> None:
    """Write a safetensors file, atomically; equal content gives equal bytes.

    The library's own writer puts the metadata in an order that differs from run to run, so the
    header is written here: its length (8 bytes, little endian), sorted JSON, then the tensors'
    bytes, wide dtypes first so that all are aligned.

    Args:   overwrite: see atomic.
    Raises: OSError: see atomic.  ValueError: a dtype that is not stored; a header above HEADER_LIMIT.
    """
    names, head, end = _header_bytes({name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}, metadata)
    with atomic(path, overwrite) as file:
        reserve_space(file, len(head) + end)
        file.write(head)
        for name in names:
            file.write(raw_bytes(tensors[name]))


def size_in_bytes(shapes: Shapes, metadata: Mapping[str, str]) -> int:
    """The size of the file that `write_safetensors` would make of such tensors. Raises as it does."""
    _, head, end = _header_bytes(shapes, metadata)
    return len(head) + end


def _header_bytes(shapes: Shapes, metadata: Mapping[str, str]) -> tuple[list[str], bytes, int]:
    """The header of a safetensors file: names in the order of their bytes, everything before the first tensor, and the
    length of all tensors."""
    names = sorted(shapes, key=lambda name: (-shapes[name][0].itemsize, name))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in names:
        dtype, shape = shapes[name]
        if dtype not in DTYPE_NAMES:
            raise ValueError(f"{name}: {dtype} is not stored, only {', '.join(map(str, DTYPE_NAMES))}")
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_LIMIT:
        limit = f"{HEADER_LIMIT / 1e6:.0f} MB"
        raise ValueError(f"{len(text) / 1e6:.0f} MB of names and metadata, above the {limit} that are read back")
    return names, len(text).to_bytes(8, "little") + text, end


def raw_bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes in row-major order, without a copy where it lies so in the CPU's memory."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def word_sum(path: str | os.PathLike) -> int:
    """The sum of a tensor file's 64-bit words, modulo 2^64, which any one bit changes: detects damage, at the pace of
    reading.

    Raises: OSError: missing, unreadable.
    """
    total, buffer = 0, bytearray(CHUNK_BYTES)
    with open(path, "rb") as file:  # not mapped: that is slower from disk
        while filled := file.readinto(buffer):
            buffer[filled:] = bytes(CHUNK_BYTES - filled)
            total += int(torch.frombuffer(buffer, dtype=torch.int64).sum())
    return total % 2**64


def read_safetensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file, memory-mapped, and its metadata.

    Raises: OSError: missing, a folder, unreadable.  ValueError: a pickle, cut short, not safetensors, a
            name given twice, more than HEADER_LIMIT bytes of names and metadata.
    """
    with _open_checked(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})


def places(path: str | os.PathLike) -> dict[str, TensorLocation]:
    """{name: where it lies} of every tensor, without reading one. Raises as read does."""
    return _read_header(path)[0]


def _read_header(path: str | os.PathLike) -> tuple[dict[str, TensorLocation], dict[str, str]]:
    """The header of a safetensors file: where each tensor lies, and the metadata."""
    metadata = read_metadata(path)  # the library's word that no tensor leaves the file, nor is cut
    with Path(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    places = {
        name: TensorLocation(entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
    }
    return places, metadata


class Checkpoint(NamedTuple):
    """What the header of a file says: read once, then handed on."""

    path: Path
    places: Mapping[str, TensorLocation]
    """{name: where it lies} of every tensor."""
    metadata: Mapping[str, str]

    @classmethod
    def of(cls, path: Path) -> "Checkpoint":
        """Raises as read does."""
        return cls(path, *_read_header(path))


def read_rows(path: str | os.PathLike, pieces: Sequence[tuple[TensorLocation, int, int]]) -> Tensor:
    """Rows first..last - 1 of one or more tensors of a file, below each other, in memory of their own. Numbers of 8
    bits, which torch does not compute with, come as bfloat16, which has them all.

    Args:    pieces: (place, first, last); of one dtype, one of FLOATS, and one shape of row.
    Raises:  OSError.  ValueError: the file ends before them, so it has been changed.
    """
    dtype, shape, _ = pieces[0][0]
    result = torch.empty(sum(last - first for _, first, last in pieces), *shape[1:], dtype=FLOATS[dtype])
    done, row = 0, result.element_size() * math.prod(shape[1:])
    with Path(path).open("rb") as file:
        for place, first, last in pieces:
            part = raw_bytes(result[done : done + last - first])
            done += last - first
            file.seek(place.start + first * row)
            if file.readinto(part) < len(part):
                raise ValueError(f"{path} ends before what its header promises: it has changed, open it again")
    return result if result.element_size() > 1 else result.bfloat16()


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The metadata alone. Raises as read does."""
    with _open_checked(path) as file:
        return dict(file.metadata() or {})


@contextlib.contextmanager
def _open_checked(path: str | os.PathLike) -> Iterator:
    """safetensors' safe_open with the refusals of `read_safetensors`."""
    path = Path(path)
    if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():  # a pipe would be waited for, a device is mapped
        raise OSError(f"{path}: no regular file; tensors are read from a file on disk, save it there first")
    with path.open("rb") as raw:  # missing, a folder, no permission: Python's own OSError says so
        start = raw.read(16)
        if path.suffix.lower() in PICKLES or (start[8:9] != b"{" and start[:2] in (b"PK", b"\x80\x02", b"\x80\x04")):
            raise ValueError(f"{path}: a pickle can run code when opened and is refused; convert it to .safetensors")
        raw.seek(8)
        _refuse_oversized_or_duplicate_names(path, raw, int.from_bytes(start[:8], "little"))
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        size = path.stat().st_size
        raise ValueError(f"{path}: not a whole safetensors file ({size} bytes; {error}); fetch it again") from error


def _refuse_oversized_or_duplicate_names(path: Path, raw: BinaryIO, length: int) -> None:
    """What the library lets pass: a header of a size that nobody needs, and a name given twice, the last one counting.

    Raises: ValueError, naming the name.
    """

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        """JSON's pairs in a safetensors header as a dictionary; names that are given twice are noted."""
        found = dict(pairs)
        if len(found) < len(pairs):
            twice.extend(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        return found

    twice: list[str] = []
    if length > path.stat().st_size:
        return  # cut short, which the library says
    if length > HEADER_LIMIT:
        limit = f"{HEADER_LIMIT / 1e6:.0f} MB"
        raise ValueError(f"{path}: {length / 1e6:.0f} MB of names and metadata, above the {limit} that are read")
    try:
        json.loads(raw.read(length), object_pairs_hook=unique)
    except (ValueError, RecursionError):
        return  # no JSON, which the library says
    if twice:
        raise ValueError(f"{path}: holds {len(twice)} names twice, such as {twice[0][:200]!r}; write it anew")
