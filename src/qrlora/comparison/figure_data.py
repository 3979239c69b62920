"""A reproduced result as data: the rows of its table and the content of its figure, which `plots` draws."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .summary_tables import TableRow

Line = tuple[Sequence[float], Sequence[float]]
"""x and y, of equal length."""


@dataclass(frozen=True)
class Curves:
    """A figure of panels side by side, with lines over a common x."""

    panels: Mapping[str, Mapping[str, Line]]
    """{title: {name: line}}."""
    x_label: str
    y_label: str
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None
    """{name: (low, high)} of lines with an interval."""


@dataclass(frozen=True)
class LayerCurves:
    """A figure of curves over a model's layers, with histograms of their values."""

    layers: Sequence[str]
    curves: Mapping[str, Mapping[str, Sequence[float]]]
    """{axis label: {name: a value for each layer}}."""


@dataclass(frozen=True)
class StrengthGrid:
    """A figure of images, one for each pair of strengths."""

    images: Sequence[Sequence[Any]]
    content_strengths: Sequence[float]
    style_strengths: Sequence[float]


@dataclass(frozen=True)
class Cell:
    """One image of a contact sheet."""

    title: str
    image: Any
    note: str = ""
    correct: bool | None | Sequence[bool | None] = None
    """Whether the note, or each line of it, is shown as correct or as wrong; None: neither."""


@dataclass(frozen=True)
class ContactSheet:
    """A figure of rows of images, equally many in each."""

    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class ReproducedResult:
    """A table or figure of the paper, reproduced."""

    title: str
    rows: Sequence[TableRow]
    notes: Sequence[str]
    """What a reader must know to compare it with the paper's."""
    figure: Curves | LayerCurves | StrengthGrid | ContactSheet | None = None
    further: Mapping[str, Sequence[TableRow]] = field(default_factory=dict)
    """{title: rows} of the tables below."""
    seconds: float = math.nan
    """What it took to make, with what the folder had already."""
