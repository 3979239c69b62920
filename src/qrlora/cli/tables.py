"""Tables on standard output, and numbers as their cells."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ..lora_keys import printable
from . import console as streams


class Cell:
    """A cell that breaks at spaces and at the dots and slashes of names, elsewhere only where that is not enough."""

    def __init__(self, text: str) -> None:
        self.parts = re.findall(r"[^ ./,]+[ ./,]*|[ ./,]+", text)
        self.least = max((cell_len(x.rstrip()) for part in self.parts for x in _pieces(part)), default=0)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        most = min(cell_len("".join(self.parts)), options.max_width)
        return Measurement(min(self.least, most), most)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """A table's cell, broken into lines where it is too wide."""
        lines = [""]
        for part in self.parts:
            for piece in [part] if cell_len(part.rstrip()) <= options.max_width else _pieces(part):
                if lines[-1] and cell_len(lines[-1] + piece.rstrip()) > options.max_width:
                    lines.append("")
                lines[-1] += piece
        yield Text("\n".join(line.rstrip() for line in lines), justify=options.justify, overflow="fold")


def _pieces(part: str) -> list[str]:
    """A name without dots in pieces that end in _ or -."""
    return re.findall(r"[^_-]+[_-]*|[_-]+", part)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", numbers: bool = True) -> None:
    """Print a table; columns after the first are set to the right if they hold numbers.

    No head if no column has a name. What is too wide is broken at spaces and after the signs that part a name.
    """
    out, grid = streams.out, Table(box=box.SIMPLE_HEAD, show_header=any(columns), collapse_padding=True, pad_edge=False)
    lines = [[Cell(printable(cell, streams.MAX_SHOWN)) for cell in line] for line in (columns, *rows)]
    for k, column in enumerate(lines[0]):
        least = max(line[k].least for line in lines)
        grid.add_column(column, justify="right" if k and numbers else "left", min_width=least)
    for line in lines[1:]:
        grid.add_row(*line)
    if out.measure(grid, options=out.options.update(max_width=10**6)).minimum > out.width:
        for column in grid.columns:  # better broken anywhere than cut off
            column.min_width = None
    if title:
        out.print(Text(title, style="bold"))
    out.print(grid, soft_wrap=False)


def format_number(value: float, digits: int = 3) -> str:
    """A number for a table; a dash where it has no meaning."""
    return "-" if math.isnan(value) else f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no "-0.000"


def format_count(value: int) -> str:
    """A count with its order of magnitude: "21,299,200 (21.3 M)"."""
    return f"{value:,} ({value / 1e6:.1f} M)" if value >= 1e5 else f"{value:,}"


def file_size(path: Path) -> str:
    """A file's size in MB."""
    return f"{path.stat().st_size / 1e6:.1f} MB"
