"""Everything that is drawn, and how it is written to files. The door to matplotlib."""

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
from .intervals import intervals
from .saving import figure_format, made_with, picture_format, save, save_picture

__all__ = [
    "BAD",
    "GOOD",
    "MUTED",
    "Panel",
    "curves",
    "figure_format",
    "intervals",
    "layer_lines",
    "made_with",
    "picture_format",
    "save",
    "save_picture",
    "sheet",
    "strength_grid",
]
