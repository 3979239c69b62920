"""What a reproduced result is, as values: rows for its table, and what its picture shows. Who draws is another room."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .summary_tables import Row

Line = tuple[Sequence[float], Sequence[float]]
"""x and y, equally many."""


@dataclass(frozen=True)
class Curves:
    """Panels side by side, each with lines over one x."""

    panels: Mapping[str, Mapping[str, Line]]
    """{title: {name: line}}."""
    x_label: str
    y_label: str
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None
    """{name: (low, high)} of lines with an interval."""


@dataclass(frozen=True)
class Layers:
    """Curves over a model's layers, and how their values are distributed."""

    layers: Sequence[str]
    curves: Mapping[str, Mapping[str, Sequence[float]]]
    """{axis label: {name: a value for each layer}}."""


@dataclass(frozen=True)
class Grid:
    """A picture for each pair of strengths."""

    pictures: Sequence[Sequence[Any]]
    content_strengths: Sequence[float]
    style_strengths: Sequence[float]


@dataclass(frozen=True)
class Cell:
    """One picture of a sheet."""

    title: str
    picture: Any
    note: str = ""
    right: bool | None = None
    """Whether the note is good news; None: neither good nor bad."""


@dataclass(frozen=True)
class Sheet:
    """Lines of pictures under each other, equally many in each."""

    lines: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class ReproducedResult:
    """One result of the paper."""

    title: str
    rows: Sequence[Row]
    notes: Sequence[str]
    """What a reader must know to compare it with the paper's."""
    figure: Curves | Layers | Grid | Sheet | None = None
