"""RESULTS: the paper's tables and figures, one name each, on any base."""

import difflib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..outputs import atomic
from .attributes import figure9, figure26
from .comparison import table1
from .convergence import figure8
from .figures import Reproduced
from .formulas import table2, table3
from .grids import figure7, figure10
from .initialisation import initialisation
from .jobs import versions
from .lessons import Asked
from .matrices import figure3, figure14, table4
from .report import as_csv, check_page, markdown, settings_line


class Result(NamedTuple):
    """How one result is made."""

    make: Callable[[Asked], Reproduced]
    base: str = "tiny-flux"
    """Where no other is asked for; the built-in one of the paper's own where the result is of one backbone."""


RESULTS = {
    "table1": Result(table1),
    "table2": Result(table2),
    "table3": Result(table3),
    "table4": Result(table4),
    "figure2": Result(table4),  # the same measurement, drawn
    "figure3": Result(figure3),
    "figure5": Result(table1),  # the same pictures, shown
    "figure7": Result(figure7),
    "figure8": Result(figure8),
    "figure9": Result(figure9),
    "figure10": Result(figure10),
    "figure14": Result(figure14, "tiny-sdxl"),
    "figure15": Result(figure14, "tiny-flux"),
    "figure16": Result(figure14, "tiny-sd3"),
    "figure17": Result(figure7, "tiny-sdxl"),
    "figure18": Result(figure7, "tiny-sd3"),
    "figure19": Result(figure7, "tiny-flux"),
    "figure20": Result(table1),  # more of figure 5
    "figure26": Result(figure26),
    "initialisation": Result(initialisation),  # section 5
}


def reproduce(name: str, asked: Asked, overwrite: bool = False) -> Reproduced:
    """One result of the paper.

    Args:   overwrite: whether the result of other settings, in the folder, may be replaced.
    Raises: ValueError: an unknown name; a job that failed.  OSError: no such base, a full disk; see `check_page`.
    """
    if name not in RESULTS:
        near = difflib.get_close_matches(name, RESULTS, n=1)
        hint = f"did you mean {near[0]!r}? There" if near else "there"
        raise ValueError(f"no result {name!r} of the paper; {hint} are {', '.join(RESULTS)}")
    make, base = RESULTS[name]
    page = asked.folder / f"{name}.md"
    check_page(page, [page.with_suffix(".csv"), page.with_suffix(".png")], _settings(name, asked), overwrite)
    return make(asked if asked.base else replace(asked, base=base))


def write(name: str, found: Reproduced, asked: Asked, command: str) -> list[Path]:
    """NAME.md and NAME.csv in the folder; returns the files."""
    page = [f"# {found.title}", "", f"`{command}`", "", *(line for note in found.notes for line in (note, ""))]
    page += [*markdown([{k: shown(v) for k, v in row.items()} for row in found.rows]), ""]
    page += [_settings(name, asked), "", "Versions: " + ", ".join(f"{k} {v}" for k, v in versions().items()), ""]
    written = []
    for ending, text in ((".md", "\n".join(page)), (".csv", as_csv(found.rows))):  # it says whose the others are
        written.append(asked.folder / f"{name}{ending}")
        with atomic(written[-1]) as file:
            file.write(text.encode())
    return written


def _settings(name: str, asked: Asked) -> str:
    """What a result was made with."""
    told = {key: getattr(asked, key) for key in ("base", "pairs", "seed", "rank", "steps", "encoders", "device")}
    return settings_line({**told, "base": asked.base or RESULTS[name].base})


def shown(value: Any) -> str:
    """A value for a page: numbers short, NaN as a dash."""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    if math.isnan(value):
        return "-"
    return f"{value:.1e}" if value and abs(value) < 1e-3 else f"{value:.4g}"
