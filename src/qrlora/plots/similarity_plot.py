"""The plot of how similar two adapters are, layer by layer. [matplotlib]"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..analysis import Similarity
from .figures import layer_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def similarity_plot(names: Sequence[str], rows: Sequence[Similarity]) -> Figure:
    """Norms, cosines and overlaps of two adapters over their layers. Args: names: of the two.  rows: by layer."""
    curves = {
        "norm of update": {names[0]: [r.first_norm for r in rows], names[1]: [r.second_norm for r in rows]},
        "cosine": {"updates": [r.update for r in rows], "trained factors": [r.trained for r in rows]},
        "overlap of spans": {"inputs": [r.input_overlap for r in rows], "outputs": [r.output_overlap for r in rows]},
    }
    return layer_lines([row.layer for row in rows], curves, title=f"{names[0]} and {names[1]}")
