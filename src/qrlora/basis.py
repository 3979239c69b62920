"""Basis = {layer: Q}: the frozen directions of one base model. Computed once, cached on disk.

Letters: o outputs, i inputs, r rank.

The cache holds <digest>.safetensors, one file per basis, and <key>.json, which names the bases of the weights that
have that key. Set QRLORA_CACHE to move it.
"""

import errno
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import platformdirs
from torch import Tensor

from .linalg import rank_of_whole_batches, subspace_and_lost_fraction
from .output_files import atomic, warn_if_unwritable
from .parallel_map import on_device, parallel_map
from .safetensors_files import raw_bytes, read_safetensors, word_sum, write_safetensors

FINGERPRINT_LAYERS = 16
SEARCH_ALGORITHM = "thick-restart block Lanczos, until a random block agrees"
"""How directions are found: another algorithm finds others, and must not read these."""
SAMPLED_RUNS = 64
"""A weight's key reads so many runs of so many entries, evenly spread over its memory."""
SAME_BASE_TOLERANCE = 0.01
UNWRITABLE_CACHE = "directions are computed at every start: set QRLORA_CACHE to a folder that can be written"


@dataclass(frozen=True)
class Weights(Collection):
    """(layer, weight (o, i)) pairs, each read when it is needed, as often as one iterates: a model need not be
    held twice."""

    layers: Mapping[str, tuple[int, int]]
    """{layer: (o, i)}, known without reading."""
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
    lost: float | None = None
    """Fraction of squared Frobenius norm that the directions lack, as measured (`lanczos.lost_fraction`), in the worst
    layer; 0: all eigenvectors were found. None: not known, as of a lone file."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of side, names, shapes and bytes: equal digests are equal bases."""
        return _tensors_digest(self.side, sorted(self.Q.items()))

    def truncate(self, rank: int) -> "Basis":
        """The same base's basis at a lower rank: its first columns.

        Raises: ValueError: rank outside 1..r.
        """
        if not 1 <= rank <= self.rank:
            raise ValueError(f"rank must lie in 1..{self.rank} to truncate a basis of rank {self.rank}, got {rank}")
        return Basis({layer: Q[:, :rank].contiguous() for layer, Q in self.Q.items()}, rank, self.side, self.lost)


def compute_basis(
    weights: Iterable[tuple[str, Tensor]],
    rank: int,
    side: str = "input",
    progress: Callable[[str], None] | None = None,
    spare: bool = False,
    device: str | None = None,
) -> Basis:
    """Leading subspace of every weight.

    Args:    weights (layer, (o, i)); progress is called with a layer's name after it is done.
             spare: keep all directions of a batch (DIRECTIONS_AT_ONCE), which cost nothing: `truncate` gives any
             smaller rank. device: where directions are found, see `parallel_map.on_device`; None: where a weight lies.
    Raises:  ValueError, naming the layer: rank above the layer's size, NaN or infinity; no layers.
    """

    def found(item: tuple[str, Tensor]) -> tuple[str, Tensor, float]:
        layer, weight = item
        count = min(rank_of_whole_batches(rank), *weight.shape) if spare and 1 <= rank <= min(weight.shape) else rank
        try:
            Q, lacking = on_device(lambda W: subspace_and_lost_fraction(W, count, side), weight, device)
            return layer, Q.cpu(), lacking
        except ValueError as error:
            raise ValueError(f"{layer}: {error}") from error

    directions, lost = {}, 0.0
    for layer, Q, lacking in parallel_map(found, weights):
        directions[layer], lost = Q, max(lost, lacking)
        if progress:
            progress(layer)
    if not directions:
        raise ValueError("a basis needs at least one layer, got none")
    return Basis(directions, max(Q.shape[1] for Q in directions.values()), side, lost)


def cached_basis(
    weights: Collection[tuple[str, Tensor]],
    rank: int,
    side: str = "input",
    progress: Callable[[str], None] | None = None,
    device: str | None = None,
) -> Basis:
    """compute_basis, from disk where these weights were seen before, at this rank or a higher one.

    The cache holds whole batches of directions (lanczos.DIRECTIONS_AT_ONCE): a smaller rank is their beginning.
    Weights are read one at a time, twice where the basis is new; where it is known, only the samples of `weights_key`.
    A cached file that is damaged is computed again, and a cache that cannot be written done without; a warning each.

    Raises: ValueError: see compute_basis.
    """
    record = cache_folder() / f"{weights_key(weights, side)}.json"
    known = _read_record(record)
    if entry := known.get(str(min((int(held) for held in known if int(held) >= rank), default=0))):
        try:
            return _truncated_with_digest(_load_verified(entry), rank, entry, known, record)
        except _DamagedCache as error:
            warnings.warn(f"the cached basis is damaged and computed again: {error}", stacklevel=2)
    basis = compute_basis(weights, rank, side, progress, spare=True, device=device)
    entry = {"file": basis.digest, "lost": basis.lost, "digests": {}}
    with warn_if_unwritable(UNWRITABLE_CACHE):
        entry["checksum"] = word_sum(save_basis(basis, replace=True))
        known[str(rank_of_whole_batches(rank))] = entry
    return _truncated_with_digest(basis, rank, entry, known, record)


def weights_key(weights: Iterable[tuple[str, Tensor]], side: str) -> str:
    """The key of weights in the cache (hex): names, dtypes, shapes, and 64 runs of 64 entries of each.

    Reading all of a base to find its basis would take longer than finding it. A change that training, merging or
    pruning makes is spread over a weight's entries, and one that fills a 64th of a weight without gaps meets a run.
    An edit so small that all runs of all layers miss it gets the old directions: orthonormal still, theirs to
    train on, and differing from its own as little as the weights do.
    """
    state = hashlib.sha256(f"{side} {SEARCH_ALGORITHM}".encode())
    for layer, weight in weights:
        state.update(f"{layer} {weight.dtype} {tuple(weight.shape)}".encode())
        entries = weight.detach().reshape(-1)
        if len(entries) > SAMPLED_RUNS**2:
            between = (len(entries) - SAMPLED_RUNS) // (SAMPLED_RUNS - 1)
            entries = entries.as_strided((SAMPLED_RUNS, SAMPLED_RUNS), (between, 1))
        state.update(raw_bytes(entries))
    return state.hexdigest()


def save_basis(basis: Basis, replace: bool = False) -> Path:
    """Put a basis into the cache under its digest; an existing file is kept unless replace.

    Raises: OSError: the cache cannot be written.
    """
    path = _basis_path(basis.digest)
    if replace or not path.is_file():
        write_safetensors(path, basis.Q, {"format": "pt", "side": basis.side, "rank": str(basis.rank)})
    return path


def load_basis(digest: str) -> Basis:
    """The basis of that digest from the cache, verified: a file of its own, or the beginning of one of a higher rank.

    Raises: OSError: not in the cache.  ValueError: its content is not what its name says.
    """
    kept, rank = digest, 0
    if not _basis_path(digest).is_file():  # perhaps the beginning of one that is
        for entry in (entry for record in cache_folder().glob("*.json") for entry in _read_record(record).values()):
            ranks = [int(rank) for rank, known in entry["digests"].items() if known == digest]
            kept, rank = (entry["file"], ranks[0]) if ranks else (kept, rank)
    basis = _read_basis_file(kept).truncate(rank) if rank else _read_basis_file(digest)
    if basis.digest != digest:
        raise ValueError(f"{digest}.safetensors: the content does not match the digest in its name")
    return basis


def cache_folder() -> Path:
    """$QRLORA_CACHE, or "qrlora" in the user's cache folder; "bases" within it."""
    return Path(os.environ.get("QRLORA_CACHE") or platformdirs.user_cache_dir("qrlora")) / "bases"


def _basis_path(digest: str) -> Path:
    """Where the basis of that digest is kept."""
    return cache_folder() / f"{digest}.safetensors"


def fingerprint(weights: Iterable[tuple[str, Tensor]]) -> dict[str, float]:
    """A few numbers that tell apart the base models that bases are of: {layer: root mean square of its weight}.

    The layers are the 16 whose names hash lowest, so that two overlapping choices of targets
    share layers in their fingerprints.

    Raises: ValueError, naming the layer: NaN or infinity.
    """
    lowest: list[tuple[bytes, str, float]] = []
    if isinstance(weights, Weights):  # the others need not be read
        chosen = sorted(weights.layers, key=lambda layer: hashlib.sha256(layer.encode()).digest())
        weights = Weights({layer: weights.layers[layer] for layer in chosen[:FINGERPRINT_LAYERS]}, weights.read)
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
    with an unknown base, nothing disagrees and the result is True.
    """
    shared = first.keys() & second.keys()
    return all(abs(first[x] - second[x]) <= SAME_BASE_TOLERANCE * max(first[x], second[x]) for x in shared)


def _tensors_digest(title: str, tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A basis' digest: SHA-256 (hex) of a title and of names, dtypes, shapes and bytes of tensors."""
    state = hashlib.sha256(title.encode())
    for name, tensor in tensors:
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(raw_bytes(tensor))
    return state.hexdigest()


class _DamagedCache(ValueError):
    """A file of the cache is not what was written."""


def _read_record(record: Path) -> dict[str, dict]:
    """A basis record: {directions held: {"file": its digest, "checksum": word_sum, "lost", "digests": {rank: it}}}."""
    try:
        known = json.loads(record.read_text()) if os.access(record, os.R_OK) else {}
        return {str(int(held)): {**x, "file": x["file"], "digests": {**x["digests"]}} for held, x in known.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        warnings.warn(f"the cached basis is damaged and computed again: {record}: {error!r:.200}", stacklevel=3)
        return {}


def _load_verified(entry: Mapping) -> Basis:
    """The basis that an entry names. Raises _Damaged: missing, or not what was written."""
    try:
        if word_sum(_basis_path(entry["file"])) != entry["checksum"]:  # several times as fast as a digest
            raise ValueError(f"{entry['file']}.safetensors does not have its checksum")
        basis = replace(_read_basis_file(entry["file"]), lost=entry["lost"])
    except (OSError, ValueError, KeyError) as error:
        raise _DamagedCache(str(error)) from error
    basis.__dict__["digest"] = entry["file"]  # as the cached property would; the checksum vouches for it
    return basis


def _truncated_with_digest(basis: Basis, rank: int, entry: dict, known: Mapping, record: Path) -> Basis:
    """The beginning of a kept basis. Its digest stands in the record, or is computed once and written there.

    Raises: ValueError, naming the layer: rank above the layer's size.
    """
    for layer, Q in basis.Q.items():
        if rank > Q.shape[1]:
            raise ValueError(f"{layer}: rank must lie in 1..{Q.shape[1]}, got {rank}")
    found = basis if rank == basis.rank else basis.truncate(rank)
    if str(rank) in entry["digests"]:
        found.__dict__["digest"] = entry["digests"][str(rank)]
    else:
        entry["digests"][str(rank)] = found.digest
        if "checksum" in entry:  # else it could not be kept
            with warn_if_unwritable(UNWRITABLE_CACHE), atomic(record) as file:
                file.write(json.dumps(known).encode())
    return found


def _read_basis_file(digest: str) -> Basis:
    """What the file of that digest holds, unverified. Raises as `read_safetensors`, and OSError: not in the cache."""
    path = _basis_path(digest)
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such basis in the cache", str(path))
    directions, metadata = read_safetensors(path)
    return Basis(directions, int(metadata.get("rank", "0")), metadata.get("side", ""))
