"""Basis = {layer: Q}: the frozen directions of one base model. Computed once, cached on disk.

Letters: o outputs, i inputs, r rank.

The cache holds <digest>.safetensors, one file per basis, and <key>.txt, which names the digest of
the basis of those weights. Set QRLORA_CACHE to move it.
"""

import errno
import hashlib
import os
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import platformdirs
from torch import Tensor

from .linalg import leading_subspace
from .storage import atomic, raw_bytes, read, write

FINGERPRINT_LAYERS = 16
SAME_BASE_TOLERANCE = 0.01


@dataclass(frozen=True)
class Weights(Collection):
    """(layer, weight (o, i)) pairs that are read when their turn comes, as often as one iterates: a model need not be
    held twice."""

    layers: Sequence[str]
    read: Callable[[str], Tensor]
    """(layer) -> its weight."""

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((layer, self.read(layer)) for layer in self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __contains__(self, item: object) -> bool:
        return item in self.layers


@dataclass(frozen=True)
class Basis:
    """Leading directions of some layers of a base model."""

    Q: Mapping[str, Tensor]
    """{layer: (i, r) for side "input", (o, r) for "output"}, float32, strongest first."""
    rank: int
    """r, the largest of any layer; a computed basis has it in every layer."""
    side: str
    """"input" or "output"."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of side, names, shapes and bytes: equal digests are equal bases."""
        return _hash(self.side, sorted(self.Q.items()))

    def truncate(self, rank: int) -> "Basis":
        """The same base's basis at a lower rank: its first columns.

        Raises: ValueError: rank outside 1..r.
        """
        if not 1 <= rank <= self.rank:
            raise ValueError(f"rank must lie in 1..{self.rank} to truncate a basis of rank {self.rank}, got {rank}")
        return Basis({layer: Q[:, :rank].contiguous() for layer, Q in self.Q.items()}, rank, self.side)


def compute_basis(
    weights: Iterable[tuple[str, Tensor]],
    rank: int,
    side: str = "input",
    progress: Callable[[str], None] | None = None,
) -> Basis:
    """Leading subspace of every weight.

    Args:    weights (layer, (o, i)); progress is called with a layer's name after it is done.
    Raises:  ValueError, naming the layer: rank above the layer's size, NaN or infinity; no layers.
    """
    directions = {}
    for layer, weight in weights:
        try:
            directions[layer] = leading_subspace(weight, rank, side).cpu()
        except ValueError as error:
            raise ValueError(f"{layer}: {error}") from error
        if progress:
            progress(layer)
    if not directions:
        raise ValueError("a basis needs at least one layer, got none")
    return Basis(directions, rank, side)


def cached_basis(
    weights: Collection[tuple[str, Tensor]],
    rank: int,
    side: str = "input",
    progress: Callable[[str], None] | None = None,
) -> Basis:
    """compute_basis, from disk where these very weights were seen before.

    Weights are read twice, one at a time. A cached file that is damaged is computed again, with one line of warning.

    Raises: ValueError: see compute_basis.  OSError: the cache cannot be written.
    """
    key = cache_folder() / f"{_hash(f'{side} {rank}', weights)}.txt"
    if key.is_file():
        try:
            return load_basis(key.read_text())
        except (OSError, ValueError) as error:
            warnings.warn(f"the cached basis is damaged and computed again: {error}", stacklevel=2)
    basis = compute_basis(weights, rank, side, progress)
    save_basis(basis, replace=True)
    with atomic(key) as file:
        file.write(basis.digest.encode())
    return basis


def save_basis(basis: Basis, replace: bool = False) -> Path:
    """Put a basis into the cache under its digest; an existing file is kept unless replace.

    Raises: OSError: the cache cannot be written.
    """
    path = cache_folder() / f"{basis.digest}.safetensors"
    if replace or not path.is_file():
        write(path, basis.Q, {"format": "pt", "side": basis.side, "rank": str(basis.rank)})
    return path


def load_basis(digest: str) -> Basis:
    """The basis of that digest from the cache, verified.

    Raises: OSError: not in the cache.  ValueError: its content is not what its name says.
    """
    path = cache_folder() / f"{digest}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such basis in the cache", str(path))
    directions, metadata = read(path)
    basis = Basis(directions, int(metadata.get("rank", "0")), metadata.get("side", ""))
    if basis.digest != digest:
        raise ValueError(f"{path}: the content does not match the digest in its name")
    return basis


def cache_folder() -> Path:
    """$QRLORA_CACHE, or "qrlora" in the user's cache folder; "bases" within it."""
    return Path(os.environ.get("QRLORA_CACHE") or platformdirs.user_cache_dir("qrlora")) / "bases"


def fingerprint(weights: Iterable[tuple[str, Tensor]]) -> dict[str, float]:
    """A few numbers that tell base models apart: {layer: root mean square of its weight}.

    The layers are the 16 whose names hash lowest, so that two overlapping choices of targets
    share layers in their fingerprints.

    Raises: ValueError, naming the layer: NaN or infinity.
    """
    lowest: list[tuple[bytes, str, float]] = []
    for layer, weight in weights:  # one at a time: some are read from disk
        place = hashlib.sha256(layer.encode()).digest()
        if len(lowest) < FINGERPRINT_LAYERS or place < lowest[-1][0]:
            value = float(weight.detach().float().square().mean().sqrt())
            lowest = sorted([*lowest, (place, layer, value)])[:FINGERPRINT_LAYERS]
    found = {layer: value for _, layer, value in lowest}
    for layer, value in found.items():
        if not value < float("inf"):
            raise ValueError(f"{layer}: the weight holds NaN or infinity")
    return found


def same_base(first: Mapping[str, float], second: Mapping[str, float]) -> bool:
    """Whether two fingerprints can be of one base model: their shared layers agree within 1 %.

    Another dtype of the same weights passes, another model does not. Without a shared layer, or
    with an unknown base, nothing disagrees and the answer is yes.
    """
    shared = first.keys() & second.keys()
    return all(abs(first[x] - second[x]) <= SAME_BASE_TOLERANCE * max(first[x], second[x]) for x in shared)


def _hash(title: str, tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 (hex) of a title and of names, dtypes, shapes and bytes of tensors."""
    state = hashlib.sha256(title.encode())
    for name, tensor in tensors:
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(raw_bytes(tensor))
    return state.hexdigest()
