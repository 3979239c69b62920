"""RESULTS: the paper's tables and figures, one name each, on any base."""

import difflib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..storage import atomic
from .convergence import figure8
from .figures import Reproduced
from .formulas import table2, table3
from .grids import figure7, figure10
from .jobs import versions
from .lessons import Asked
from .matrices import figure3, table4
from .report import as_csv, markdown

RESULTS: dict[str, Callable[[Asked], Reproduced]] = {
    "table2": table2,
    "table3": table3,
    "table4": table4,
    "figure2": table4,  # the same measurement, drawn
    "figure3": figure3,
    "figure7": figure7,
    "figure8": figure8,
    "figure10": figure10,
}


def reproduce(name: str, asked: Asked) -> Reproduced:
    """One result of the paper.

    Raises: ValueError: an unknown name; a job that failed.  OSError: no such base, a full disk.
    """
    if name not in RESULTS:
        near = difflib.get_close_matches(name, RESULTS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(RESULTS)}"
        raise ValueError(f"no result {name!r} of the paper; {hint}")
    return RESULTS[name](asked)


def write(name: str, found: Reproduced, asked: Asked, command: str) -> list[Path]:
    """NAME.csv and NAME.md in the folder; returns the files."""
    page = [f"# {found.title}", "", f"`{command}`", "", *(line for note in found.notes for line in (note, ""))]
    page += [*markdown([{k: shown(v) for k, v in row.items()} for row in found.rows]), ""]
    page += ["Versions: " + ", ".join(f"{k} {v}" for k, v in versions().items()), ""]
    written = []
    for ending, text in ((".csv", as_csv(found.rows)), (".md", "\n".join(page))):
        written.append(asked.folder / f"{name}{ending}")
        with atomic(written[-1]) as file:
            file.write(text.encode())
    return written


def shown(value: Any) -> str:
    """A value for a page: numbers short, NaN as a dash."""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    if math.isnan(value):
        return "-"
    return f"{value:.1e}" if value and abs(value) < 1e-3 else f"{value:.4g}"
