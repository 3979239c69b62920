"""Contact sheets, strength grids, curves over layers and steps: functions from values to a Figure. [matplotlib]"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..layouts.blocks import block_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GOOD, BAD = "#1c1c1c", "#767676", "#1a7f37", "#c0362c"
CONTENT, STYLE = "#3b6fb6", "#d9822b"  # told apart by readers with any colour vision, and in grey
LINES = (CONTENT, STYLE, "#5b8c5a", "#8a5a9e", "#1c1c1c")
CELL_SIDE = 1.7
"""Side of an image in a sheet, in inches."""
TITLE_WIDTH = 28
"""Letters of a title that fit over one image."""


@dataclass(frozen=True)
class Panel:
    """One cell of a sheet: images side by side under one title, each with its own note beneath; without images, a text
    in the place of one."""

    title: str
    pictures: Sequence[Image.Image]
    notes: Sequence[str] = ()
    """A text of one line or more for each image; empty: none."""
    right: Sequence[bool | None | Sequence[bool | None]] = ()
    """Whether each note, or each line of it, is shown as correct (green) or wrong (red); None or empty: neither."""


def empty_figure(width: float, height: float, **options: Any) -> Figure:
    """An empty white figure; sizes in inches. matplotlib is imported here, so only when something is drawn."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, facecolor="white", **options)


def escape_dollars(text: str) -> str:
    """A text with escaped dollars: between two dollars matplotlib would set a formula."""
    return text.replace("$", r"\$")


def legend_label(text: str) -> str:
    """A curve's label in a legend: matplotlib leaves out labels that begin with an underscore."""
    return escape_dollars(f" {text}" if text.startswith("_") else text)


def sheet(panels: Sequence[Panel], columns: int = 4, title: str = "", footer: str = "") -> Figure:
    """A contact sheet: panels from left to right, `columns` images to a line; a panel is never broken over lines,
    a long title is.

    Raises: ValueError: no panel or one wider than a line, or notes that do not match its images.
    """
    titles = [textwrap.fill(panel.title, TITLE_WIDTH * max(len(panel.pictures), 1)) for panel in panels]
    panels = [replace(panel, title=title) for panel, title in zip(panels, titles, strict=True)]
    lines = list(_rows_of_panels(panels, columns))
    broken = max((panel.title.count("\n") for panel in panels if panel.pictures), default=0)
    notes = max((note.count("\n") + 1 for panel in panels for note in panel.notes if note), default=0)
    cell_height = CELL_SIDE + 0.32 + 0.16 * (notes + broken)
    head, foot = (0.45 if title else 0.1), (0.3 if footer else 0.05)
    width, height = columns * (CELL_SIDE + 0.12) + 0.12, len(lines) * cell_height + head + foot
    figure = empty_figure(width, height)
    if title:
        figure.text(
            0.5,
            1 - 0.28 / height,
            escape_dollars(title),
            ha="center",
            va="center",
            fontsize=11,
            color=INK,
            weight="bold",
        )
    if footer:
        figure.text(0.5, 0.15 / height, escape_dollars(footer), ha="center", va="center", fontsize=7, color=MUTED)
    for row, line in enumerate(lines):
        top = height - head - row * cell_height - 0.26 - 0.16 * broken
        column = 0
        for panel in line:
            left = 0.12 + column * (CELL_SIDE + 0.12)
            above, place, colour = (
                (top + 0.06, "bottom", INK) if panel.pictures else (top - CELL_SIDE / 2, "center", MUTED)
            )
            words = escape_dollars(panel.title)
            figure.text(left / width, above / height, words, ha="left", va=place, fontsize=8, color=colour)
            for k, picture in enumerate(panel.pictures):
                x = (left + k * (CELL_SIDE + 0.12)) / width
                axes = figure.add_axes((x, (top - CELL_SIDE) / height, CELL_SIDE / width, CELL_SIDE / height))
                _show_image(axes, picture)
                if panel.notes:
                    _write_note(axes, panel.notes[k], panel.right[k] if panel.right else None)
            column += max(len(panel.pictures), 1)
    return figure


def _write_note(axes: Axes, note: str, right: bool | None | Sequence[bool | None]) -> None:
    """Write an image's note beneath it, every line in the colour of its own correctness."""
    lines = note.splitlines()
    each = right if isinstance(right, Sequence) else [right] * len(lines)
    for k, (line, correct) in enumerate(zip(lines, each, strict=True)):
        colour = MUTED if correct is None else GOOD if correct else BAD
        axes.annotate(
            escape_dollars(line),
            (0.5, 0),
            (0, -5 - 10 * k),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=7,
            color=colour,
        )


def _rows_of_panels(panels: Sequence[Panel], columns: int) -> Iterator[list[Panel]]:
    """The lines of a contact sheet: panels side by side, never broken over lines."""
    line: list[Panel] = []
    for panel in panels:
        count = len(panel.pictures)
        if not count <= columns:
            raise ValueError(f"panel {panel.title!r} holds {count} pictures, a line of the sheet takes 1..{columns}")
        if panel.notes and len(panel.notes) != count or panel.right and len(panel.right) != count:
            raise ValueError(f"panel {panel.title!r} has {count} pictures but {len(panel.notes)} notes")
        if sum(max(len(p.pictures), 1) for p in line) + max(count, 1) > columns:
            yield line
            line = []
        line.append(panel)
    if not line:
        raise ValueError("a sheet needs at least one panel, got none")
    yield line


def strength_grid(
    pictures: Sequence[Sequence[Image.Image]],
    content_strengths: Sequence[float],
    style_strengths: Sequence[float],
    title: str = "",
    footer: str = "",
) -> Figure:
    """The paper's figure 7: one image for each pair of strengths.

    Args:   images[k][m] was drawn at content_strengths[k] (down) and style_strengths[m] (across).
    Raises: ValueError: an image missing or too many.
    """
    rows, columns = len(content_strengths), len(style_strengths)
    if [len(line) for line in pictures] != [columns] * rows:
        found = [len(line) for line in pictures]
        raise ValueError(f"{rows} content and {columns} style strengths need {rows} lines of {columns}, got {found}")
    left, bottom, top = 0.75, 0.75 if footer else 0.55, 0.45 if title else 0.12
    gap = 0.06
    width, height = left + columns * (CELL_SIDE + gap) + 0.1, top + rows * (CELL_SIDE + gap) + bottom
    figure = empty_figure(width, height)
    for k, line in enumerate(pictures):
        for m, picture in enumerate(line):
            x, y = left + m * (CELL_SIDE + gap), height - top - (k + 1) * (CELL_SIDE + gap) + gap
            axes = figure.add_axes((x / width, y / height, CELL_SIDE / width, CELL_SIDE / height))
            _show_image(axes, picture)
            if k == rows - 1:
                axes.set_xlabel(f"{style_strengths[m]:g}", fontsize=8, color=INK, labelpad=3)
            if m == 0:
                axes.set_ylabel(f"{content_strengths[k]:g}", fontsize=8, color=INK, labelpad=3)
    middle_x, middle_y = left + columns * (CELL_SIDE + gap) / 2, bottom + rows * (CELL_SIDE + gap) / 2
    x_label = {"ha": "center", "va": "center", "fontsize": 9, "color": INK}
    figure.text(middle_x / width, (bottom - 0.38) / height, r"style strength  $\lambda_s$", **x_label)
    figure.text(0.2 / width, middle_y / height, r"content strength  $\lambda_c$", rotation=90, **x_label)
    if title:
        figure.text(0.5, 1 - 0.24 / height, escape_dollars(title), ha="center", va="center", fontsize=10, color=INK)
    if footer:
        figure.text(0.5, 0.15 / height, escape_dollars(footer), ha="center", va="center", fontsize=7, color=MUTED)
    return figure


def _show_image(axes: Axes, picture: Image.Image) -> None:
    """Show an image on a figure's axes without ticks; a small one is magnified with square and sharp pixels."""
    axes.imshow(picture, interpolation="nearest" if max(picture.size) < 256 else "antialiased", aspect="equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color="#cfcfcf", linewidth=0.6)


def layer_lines(
    layers: Sequence[str],
    curves: Mapping[str, Mapping[str, Sequence[float]]],
    title: str = "",
    log: Sequence[str] = (),
    spread: str = "",
) -> Figure:
    """Curves over the layers of a model, in the model's order, one plot under the other.

    Args: layers: names, in order.  curves: {axis label: {curve's name: one value a layer}}.
          log: axis labels with a logarithmic axis.
          spread: beside each plot stands how its values are distributed; the name of that axis.
    """
    figure = empty_figure(12 if spread else 9, 1.9 * len(curves) + 1.2, layout="constrained")
    ratios = (3, 1) if spread else (1,)
    grid = figure.subplots(len(curves), len(ratios), squeeze=False, width_ratios=ratios)
    for k, (label, lines) in enumerate(curves.items()):
        axis = grid[k, 0]
        _plot_over_layers(axis, label, lines, label in log)
        axis.sharex(grid[-1, 0])
        axis.tick_params(labelsize=7, labelbottom=k == len(curves) - 1)
        if spread:
            _plot_histogram(grid[k, 1], lines)
            _label_axes(grid[k, 1], "", spread if k == len(curves) - 1 else "", "layers")
    _label_blocks(grid[-1, 0], layers)
    if title:
        figure.suptitle(escape_dollars(title), fontsize=10, color=INK)
    return figure


def _plot_over_layers(axis: Axes, label: str, lines: Mapping[str, Sequence[float]], log: bool) -> None:
    """One plot of the figure `layer_lines`."""
    for colour, (name, values) in zip(LINES, lines.items(), strict=False):
        axis.plot(range(len(values)), values, color=colour, linewidth=0.7, alpha=0.35)  # leads the eye, no more
        axis.plot(range(len(values)), values, ".", color=colour, markersize=3.5, label=legend_label(name))
    axis.set_ylabel(escape_dollars(label), fontsize=8, color=INK)
    if log:
        axis.set_yscale("log")
    elif all(-1 <= v <= 1 for values in lines.values() for v in values):
        low = -1.05 if any(v < -0.05 for values in lines.values() for v in values) else -0.05
        axis.set_ylim(low, 1.05)
        axis.axhline(0, color="#cfcfcf", linewidth=0.6, zorder=0)
    axis.spines[["top", "right"]].set_visible(False)
    if len(lines) > 1:
        axis.legend(fontsize=7, frameon=False, ncols=len(lines), loc="lower right", bbox_to_anchor=(1, 1))


def _plot_histogram(axis: Axes, series: Mapping[str, Sequence[float]]) -> None:
    """Plot how values are distributed, in the colours of their curves."""
    from matplotlib.ticker import MaxNLocator

    every = [value for values in series.values() for value in values]
    for colour, (name, values) in zip(LINES, series.items(), strict=False):
        axis.hist(values, bins=24, range=(min(every), max(every)), color=colour, alpha=0.6, label=legend_label(name))
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))


def curves(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    x_label: str,
    y_label: str,
    title: str = "",
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
) -> Figure:
    """Lines over one x, a panel for each group, side by side.

    Args: panels: {panel's title: {name: (x, y)}}.  bands: {name: (low, high)} of lines with an interval.
    """
    figure = empty_figure(5.4 * len(panels) + 0.6, 3.8, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (head, lines) in zip(axes, panels.items(), strict=True):
        for k, (name, (x, y)) in enumerate(lines.items()):
            colour = LINES[k % len(LINES)]
            style = "-" if k < len(LINES) else "--"
            axis.plot(x, y, style, marker=".", color=colour, linewidth=1.1, markersize=4, label=legend_label(name))
            if bands and name in bands:
                axis.fill_between(x, *bands[name], color=colour, alpha=0.15, linewidth=0)
        _label_axes(axis, head, x_label, y_label)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[-1].legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))  # beside, not on the lines
    if title:
        figure.suptitle(escape_dollars(title), fontsize=10, color=INK)
    return figure


def _label_axes(axis: Axes, title: str, x_label: str, y_label: str) -> None:
    """Title and labels of a figure's axes in the common font sizes, and no frame."""
    axis.set_title(escape_dollars(title), fontsize=9, color=INK)
    axis.set_xlabel(escape_dollars(x_label), fontsize=8, color=INK)
    axis.set_ylabel(escape_dollars(y_label), fontsize=8, color=INK)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=7)


def _label_blocks(axis: Axes, layers: Sequence[str]) -> None:
    """Label a figure's x axis by blocks of layers: 560 layer names would not be readable."""
    blocks = [block_of(layer) for layer in layers]
    starts = [k for k, block in enumerate(blocks) if k == 0 or blocks[k - 1] != block]
    step = math.ceil(len(starts) / 24)
    axis.set_xticks(
        starts[::step], [escape_dollars(blocks[k]) for k in starts[::step]], rotation=40, ha="right", fontsize=7
    )
    axis.set_xlim(-0.5, max(len(layers) - 0.5, 0.5))
    axis.set_xlabel("layer, in the model's order", fontsize=8, color=INK)
