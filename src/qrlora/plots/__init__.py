"""Figures and their files: contact sheets, strength grids, curves, intervals. The only package with matplotlib."""

from .figures import (
    BAD,
    GOOD,
    MUTED,
    Panel,
    curves,
    layer_lines,
    sheet,
    strength_grid,
)
from .interval_plot import intervals
from .save_figure import animation_format, figure_format, made_with, picture_format, save, save_animation, save_picture
from .similarity_plot import similarity_plot

__all__ = [
    "BAD",
    "GOOD",
    "MUTED",
    "Panel",
    "animation_format",
    "curves",
    "figure_format",
    "intervals",
    "layer_lines",
    "made_with",
    "picture_format",
    "save",
    "save_animation",
    "save_picture",
    "sheet",
    "similarity_plot",
    "strength_grid",
]
