"""Estimates with their intervals: a dot and a line for each. [matplotlib]"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .figures import CONTENT, INK, MUTED, empty_figure, escape_dollars

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROW_HEIGHT = 0.32
"""Inches for a line."""


def intervals(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    x_label: str,
    title: str = "",
    null: float | None = None,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Panels under each other, in each a line for each name.

    Args: panels: {title: {name: (value, low, high)}}; NaN where there is no interval.  null: where "no difference" is.
          limits: of x; None: what the estimates need.
    """
    rows = [len(panel) for panel in panels.values()]
    height = sum(rows) * ROW_HEIGHT + len(rows) * 0.4 + (0.8 if title else 0.5)
    figure = empty_figure(7, height, layout="constrained")
    if title:
        figure.suptitle(escape_dollars(title), fontsize=11, color=INK, weight="bold")
    axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=[n + 0.8 for n in rows])[:, 0]
    for ax, (name, panel) in zip(axes, panels.items(), strict=True):
        ax.set_title(escape_dollars(name), fontsize=9, color=INK, loc="left")
        for k, (value, low, high) in enumerate(panel.values()):
            if not math.isnan(low):
                ax.plot([low, high], [k, k], color=CONTENT, linewidth=2.4, solid_capstyle="butt")
            ax.plot([value], [k], "o", color=INK, markersize=5)
            shown = f"{value:.2f}" if math.isnan(low) else f"{value:.2f} [{low:.2f}, {high:.2f}]"
            ax.annotate(shown, (1.01, k), xycoords=("axes fraction", "data"), fontsize=8, va="center", color=INK)
        if null is not None:
            ax.axvline(null, color=MUTED, linewidth=1, linestyle="--")
        ax.set_yticks(range(len(panel)), [escape_dollars(text) for text in panel], fontsize=8)
        ax.set_ylim(len(panel) - 0.5, -0.5)
        ax.grid(axis="x", color="#e5e5e5", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.tick_params(length=0, labelsize=8)
        ax.spines[:].set_visible(False)
    if limits is not None:
        axes[-1].set_xlim(*limits)
    axes[-1].set_xlabel(x_label, fontsize=8, color=INK)
    return figure
