"""Adapter = {layer: (A, B)} and a header that explains it.

Letters: o outputs, i inputs, r rank. A layer's name is its module's path inside the
trainable component, as diffusers spells it: "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q".
"""

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from .config.renamed_settings import accepts_old_names
from .config.type_checks import check_strengths
from .linalg import is_finite, least_squares_coordinates, update_inner_product

FORMAT_VERSION = 1
HEADER_TYPES = {
    **dict.fromkeys("family part base method targets basis role trigger prompt digest endings".split(), str),
    **dict.fromkeys(("rank", "format_version"), int),
    **dict.fromkeys(("fingerprint", "config", "kernels"), dict),
    "parents": list,
}
"""Entry of a header -> its type in JSON."""
OMITTED_IF_EMPTY = ("endings", "kernels")
"""Entries of a header that are left out where they say nothing: readers before them know the rest."""
RENAMED_ENTRIES = {"part": "component"}
"""Entry of a header in files, of which format 1 keeps the first name -> the field that it is."""
NULLABLE_NUMBERS = ("basis_energy_lost", "truncation_error", "trained", "kept_energy")
"""Numbers of a header that may be null or absent."""


@dataclass(frozen=True)
class Pair:
    """One layer's update B A of a weight (o, i)."""

    A: Tensor
    """(r, i), float32."""
    B: Tensor
    """(o, r), float32."""

    @property
    def rank(self) -> int:
        """r."""
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i), the weight's."""
        return self.B.shape[0], self.A.shape[1]

    def directions(self, side: str) -> Tensor:
        """A^T (i, r) for side "input", B (o, r) for "output": what a method may freeze, as columns."""
        return self.A.T if side == "input" else self.B

    @cached_property
    def squared_norm(self) -> float:
        """|B A|^2, the squared Frobenius norm of the update."""
        return max(update_inner_product(self.A, self.B, self.A, self.B), 0.0)

    @property
    def energy(self) -> float:
        """The old name of `squared_norm` of an adapter's pair."""
        warnings.warn(
            "Pair.energy is now Pair.squared_norm; the old name goes with 0.3", DeprecationWarning, stacklevel=2
        )
        return self.squared_norm


@accepts_old_names(RENAMED_ENTRIES, "the header's entry")
@dataclass(frozen=True, kw_only=True)
class Header:
    """What an adapter is and where it comes from; travels in its file as JSON."""

    format_version: int = FORMAT_VERSION
    """Of the file format; readers refuse any other."""
    family: str = ""
    """The kind of backbone, a name of layouts.LAYOUTS; "" when unknown."""
    component: str = ""
    """The adapted model inside the pipeline: "unet" or "transformer"."""
    base: str = ""
    """Name of the base model."""
    fingerprint: dict[str, float] = field(default_factory=dict)
    """Root mean square of some of the base's weights by layer (basis.fingerprint); empty when unknown."""
    method: str = "lora"
    """A name of METHODS, or "stack" for a merge at the sum of the ranks."""
    rank: int = 0
    """The rank of the run (qr-direct holds pairs of twice this rank)."""
    targets: str = ""
    """Which layers: a preset's name or suffixes with commas."""
    basis: str = ""
    """Digest of the Basis the run started from; "" without one."""
    role: str = ""
    """"content", "style" or "merged"."""
    trigger: str = ""
    """The word that calls the content or style in a prompt."""
    prompt: str = ""
    """The training prompt."""
    config: dict[str, Any] = field(default_factory=dict)
    """All settings of the run that made it; "basis_energy_lost": what its basis lacks (Basis.lost)."""
    parents: tuple[dict[str, Any], ...] = ()
    """Of a merge, the headers of the adapters that went into it, each with "digest", "weight" and "kept_energy"."""
    endings: str = ""
    """Of a backbone that is not known, whose layers' names are kept as another tool wrote them: the endings of its keys
    for A, B and, if it has them, alpha, with spaces between: ".lora_down.weight .lora_up.weight .alpha"."""
    kernels: dict[str, list[int]] = field(default_factory=dict)
    """Of the layers that are convolutions, the sides of their kernels: [3, 3]; A is (r, i h w) there."""

    def entries(self) -> dict[str, Any]:
        """The fields by the names that they have in files."""
        in_files = {new: old for old, new in RENAMED_ENTRIES.items()}
        return {in_files.get(name, name): value for name, value in asdict(self).items()}

    def to_json(self) -> str:
        """One line of JSON, equal for equal headers."""
        entries = self.entries()
        return json.dumps({k: x for k, x in entries.items() if x or k not in OMITTED_IF_EMPTY}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Header":
        """The adapter's header that to_json wrote.

        Raises: ValueError: not JSON, another format version, a field missing a meaning here.
        """
        try:
            values = json.loads(text)
            version, parents = values["format_version"], tuple(values.get("parents", ()))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"the adapter's header is not readable: {text[:80]!r}") from error
        if version != FORMAT_VERSION:
            raise ValueError(f"adapter format {version}, this qrlora reads format {FORMAT_VERSION}: upgrade qrlora")
        named = {RENAMED_ENTRIES.get(name, name): value for name, value in values.items()}
        unknown = named.keys() - {x.name for x in fields(cls)} | values.keys() & set(RENAMED_ENTRIES.values())
        if unknown:
            raise ValueError(f"the adapter's header holds unknown entries: {', '.join(sorted(unknown))}")
        _check_entries(values)
        waiting = list(parents)
        while waiting:
            within = waiting.pop()
            if not isinstance(within, dict) or not {"weight", "kept_energy"} <= within.keys():
                raise ValueError(f"the adapter's header: parents must be headers with their weight, got {within!r:.80}")
            _check_entries(within)
            waiting += within.get("parents", ())
        return cls(**{**named, "parents": parents})


@dataclass(frozen=True)
class Adapter:
    """Updates of some layers of one base model.

    Raises: ValueError, naming the layer: shapes that do not agree, another dtype, NaN or infinity.
    """

    layers: Mapping[str, Pair]
    header: Header

    def __post_init__(self) -> None:
        """Check that the adapter has layers, and factors that fit."""
        if not self.layers:
            raise ValueError("an adapter needs at least one layer, got none")
        for layer, pair in self.layers.items():
            _check_factors(layer, pair)

    @property
    def rank(self) -> int:
        """The largest rank of any layer's pair."""
        return max(pair.rank for pair in self.layers.values())

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """{layer: (o, i)}."""
        return {layer: pair.shape for layer, pair in self.layers.items()}

    def dense(self, layer: str) -> Tensor:
        """The adapter's update B A of one layer, (o, i). Raises ValueError for a layer that is not adapted."""
        if layer not in self.layers:
            raise ValueError(f"no layer {layer!r} among the adapter's {len(self.layers)}")
        return self.layers[layer].B @ self.layers[layer].A

    def check_shapes(self, other: "Adapter") -> None:
        """Raises ValueError, naming both base models: layers that both have are of different shape."""
        shared = [layer for layer in self.layers if layer in other.layers]
        wrong = [layer for layer in shared if self.layers[layer].shape != other.layers[layer].shape]
        if wrong:
            bases = " and ".join(adapter.header.base or "an unknown one" for adapter in (self, other))
            shapes = f"{self.layers[wrong[0]].shape} and {other.layers[wrong[0]].shape}"
            found = f"{len(wrong)} of {len(shared)} shared layers have other shapes, such as {shapes} in {wrong[0]}"
            raise ValueError(f"the adapters' base models differ, {bases}: {found}")

    def scaled(self, strength: float) -> "Adapter":
        """Every update of the adapter times strength, which goes into B. Raises ValueError: see
        config.type_checks.check_strengths."""
        check_strengths([strength], "a strength")
        layers = {layer: Pair(pair.A, pair.B * strength) for layer, pair in self.layers.items()}
        return replace(self, layers=layers)

    def select(self, wanted: Sequence[str] | Callable[[str], bool]) -> "Adapter":
        """The adapter's layers whose name ends in one of the dotted suffixes, or for which wanted(name) is true.

        Raises: ValueError: no layer is left.
        """
        chosen = wanted if callable(wanted) else lambda layer: name_ends_in(layer, wanted)
        layers = {layer: pair for layer, pair in self.layers.items() if chosen(layer)}
        if not layers:
            raise ValueError(f"none of the adapter's {len(self.layers)} layers is selected by {wanted!r}")
        return replace(self, layers=layers)

    def in_basis(self, Q: Mapping[str, Tensor], side: str) -> tuple["Adapter", dict[str, float]]:
        """The nearest adapter whose A (side "input") or B ("output") is the given basis.

        Input side: B A -> (B A Q) Q^T; output side: B A -> Q (Q^T B A), by least squares.
        A layer that stands in that very basis is handed on unchanged.

        Args:    Q {layer: (i, r) or (o, r)}, at least the adapter's layers.
        Returns: the adapter, and by layer the fraction of |B A|^2 kept, 0..1 (1 for a zero update).
        Raises:  ValueError: a layer is missing in Q, or has directions of another size.
        """
        layers, kept = {}, {}
        for layer, pair in self.layers.items():
            size = len(pair.directions(side))
            if layer not in Q or len(Q[layer]) != size:
                found = tuple(Q[layer].shape) if layer in Q else "none"
                raise ValueError(f"{layer}: needs {side} directions with {size} entries, the basis has {found}")
            if not math.isfinite(pair.squared_norm):
                raise ValueError(f"{layer}: the update's squared norm is above float32's largest; lower its strength")
            layers[layer] = _project_factors(pair, Q[layer], side)
            unchanged = layers[layer] is pair or pair.squared_norm == 0
            kept[layer] = 1.0 if unchanged else min(layers[layer].squared_norm / pair.squared_norm, 1.0)
        return replace(self, layers=layers), kept


def name_ends_in(layer: str, suffixes: Sequence[str]) -> bool:
    """Whether a layer's dotted name is, or ends in, one of the dotted suffixes; whole parts only, and a part "*" stands
    for one or more of any: "up_blocks.0.*.to_q"."""
    return any(fnmatchcase(f".{layer}", f"*.{x}") if "*" in x else f".{layer}".endswith(f".{x}") for x in suffixes)


def linear_layers(model: nn.Module, endings: Sequence[str]) -> dict[str, nn.Linear]:
    """{name: layer} of the linear layers whose names end so, in the model's order. A layer with an adapter on it
    goes by its own name.

    Args:    endings: whole dotted parts: "to_q" does not match "add_to_q".
    Raises:  ValueError: an ending that matches none, with what does have that name.
    """
    modules = {name.removesuffix(".base_layer"): module for name, module in model.named_modules()}
    linear = {name: module for name, module in modules.items() if isinstance(module, nn.Linear)}
    for ending in endings:
        if not any(name_ends_in(name, [ending]) for name in linear):
            others = {type(module).__name__ for name, module in modules.items() if name_ends_in(name, [ending])}
            found = f" (what does is a {', a '.join(sorted(others))})" if others else ""
            raise ValueError(f"no linear layer ends in {ending!r}{found}")
    return {name: layer for name, layer in linear.items() if name_ends_in(name, endings)}


def _project_factors(pair: Pair, Q: Tensor, side: str) -> Pair:
    """The pair of an adapter projected on given directions; the pair itself where its factor is them already."""
    directions = pair.directions(side)
    if torch.equal(directions, Q):
        return pair
    inside = least_squares_coordinates(Q, directions)  # (new rank, old rank)
    return Pair(Q.T.contiguous(), pair.B @ inside.T) if side == "input" else Pair(inside @ pair.A, Q)


def _check_entries(values: Mapping[str, Any]) -> None:
    """Raises ValueError, naming it: an entry of an adapter's header of another type than what is written there."""
    for name, value in values.items():
        kind = HEADER_TYPES.get(name, object)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not object):
            raise ValueError(f"the adapter's header: {name:.80} must not be {value!r:.80}")
    for layer, sides in values.get("kernels", {}).items():
        if not isinstance(sides, list) or not sides or not all(type(x) is int and x > 0 for x in sides):
            raise ValueError(f"the adapter's header: the kernel of {layer:.80} must be sides, got {sides!r:.80}")
    config = values.get("config", {})
    numbers = {name: config.get(name) for name in ("basis_energy_lost", "truncation_error", "trained")}
    numbers |= {f"fingerprint of {layer:.80}": x for layer, x in values.get("fingerprint", {}).items()}
    numbers |= {"weight": values.get("weight", 1.0), "kept_energy": values.get("kept_energy")}
    for name, value in numbers.items():
        known = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
        if not known and (value is not None or name not in NULLABLE_NUMBERS):
            raise ValueError(f"the adapter's header: {name} must be a finite number, got {value!r:.80}")


def _check_factors(layer: str, pair: Pair) -> None:
    """Raises ValueError unless an adapter's A (r, i) and B (o, r) are finite float32 matrices."""
    A, B = pair.A, pair.B
    if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1] or min(*A.shape, *B.shape) < 1:
        raise ValueError(f"{layer}: A must be (r, i) and B (o, r), got {tuple(A.shape)} and {tuple(B.shape)}")
    if A.dtype != torch.float32 or B.dtype != torch.float32:
        raise ValueError(f"{layer}: A and B must be float32, got {A.dtype} and {B.dtype}")
    for name, factor in (("A", A), ("B", B)):
        if not is_finite(factor):
            raise ValueError(f"{layer}: {name} holds NaN or infinity")
