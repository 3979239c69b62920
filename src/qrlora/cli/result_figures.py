"""Figures of comparisons and of the paper's results: curves, grids, layer lines, contact sheets."""

from collections.abc import Sequence
from typing import Any

from .. import plots
from ..comparison.figure_data import Cell, ContactSheet, Curves, LayerCurves, ReproducedResult, StrengthGrid


def figure_of(found: ReproducedResult) -> Any:
    """The figure of a reproduced result; None: tables alone have none."""
    match found.figure:
        case Curves(panels, x_label, y_label, bands):
            return plots.curves(panels, x_label, y_label, found.title, bands)
        case StrengthGrid(pictures, content_strengths, style_strengths):
            return plots.strength_grid(pictures, content_strengths, style_strengths, found.title)
        case LayerCurves(layers, curves):
            return plots.layer_lines(layers, curves, found.title, spread="cosine")
        case ContactSheet(lines):
            return sheet_of_cells(lines, found.title)
        case None:
            return None


def sheet_of_cells(lines: Sequence[Sequence[Cell]], title: str, footer: str = "") -> Any:
    """A contact sheet."""
    panels = [plots.Panel(x.title, [x.image], [x.note], [x.correct]) for line in lines for x in line]
    return plots.sheet(panels, len(lines[0]), title, footer)
