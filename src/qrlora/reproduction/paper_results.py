"""RESULTS: the paper's tables and figures, and the findings' own, by name; run one, write its page and CSV file."""

import difflib
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..comparison.figure_data import ReproducedResult
from ..comparison.jobs import versions
from ..comparison.report import check_page_writable, csv_text, markdown_table, settings_line
from ..comparison.summary_tables import TableRow
from ..output_files import atomic
from .attribute_sums import attribute_sums
from .convergence import figure8
from .crossed_sums import crossed_sums
from .fusion_scores import table1
from .gradient_formulas import table2
from .initialisation_cost import initialisation
from .matrix_similarity import figure3, figure14, table4
from .measure_tables import measures
from .request import ReproductionRequest
from .several_styles import figure9, figure26
from .strengths_and_ranks import figure7, figure10
from .trained_layers import table3


class PaperResult(NamedTuple):
    """The function that reproduces a table or figure, and the base it runs on by default."""

    make: Callable[[ReproductionRequest], ReproducedResult]
    base: str = "tiny-flux"
    """The default base: of the backbone that the paper's result is of, if it is of one."""


RESULTS = {
    "table1": PaperResult(table1),
    "table2": PaperResult(table2),
    "table3": PaperResult(table3),
    "table4": PaperResult(table4),
    "figure2": PaperResult(table4),  # the same measurement, drawn
    "figure3": PaperResult(figure3),
    "figure5": PaperResult(table1),  # the same images, shown
    "figure7": PaperResult(figure7),
    "figure8": PaperResult(figure8),
    "figure9": PaperResult(figure9),
    "figure10": PaperResult(figure10),
    "figure14": PaperResult(figure14, "tiny-sdxl"),
    "figure15": PaperResult(figure14, "tiny-flux"),
    "figure16": PaperResult(figure14, "tiny-sd3"),
    "figure17": PaperResult(figure7, "tiny-sdxl"),
    "figure18": PaperResult(figure7, "tiny-sd3"),
    "figure19": PaperResult(figure7, "tiny-flux"),
    "figure20": PaperResult(table1),  # more of figure 5
    "figure26": PaperResult(figure26),
    "initialisation": PaperResult(initialisation),  # section 5
    "crossed": PaperResult(crossed_sums),  # not of the paper, as all below: docs/findings.md
    "attributes": PaperResult(attribute_sums),
    "measures": PaperResult(measures),
}
CROSSED, SCORED_PAIRS = ("crossed", "attributes"), ("table1", "figure5", "figure20")
OF_JOBS = tuple(
    name
    for name, result in RESULTS.items()
    if result.make in (table1, table4, figure3, figure7, figure9, figure10, figure14, figure26)
)
"""The results whose training is of jobs, which workers can share."""
RESULTS_WITH = {
    "split": CROSSED,
    "truth": ("crossed",),
    "methods": CROSSED,
    "encoders": (*SCORED_PAIRS, "figure10", "measures"),
    "ratings": SCORED_PAIRS,
    "workers": OF_JOBS,
    "ray": OF_JOBS,
}
"""Setting of a request that is not of every result -> the results that it changes."""


def reproduce(name: str, request: ReproductionRequest, overwrite: bool = False) -> ReproducedResult:
    """Reproduce one table or figure of the paper.

    Args:   overwrite: whether the result of other settings, in the folder, may be replaced.
    Raises: ValueError: an unknown name; a failed job.  OSError: no such base, a full disk; see `check_page_writable`.
    """
    if name not in RESULTS:
        near = difflib.get_close_matches(name, RESULTS, n=1)
        hint = f"did you mean {near[0]!r}? There" if near else "there"
        raise ValueError(f"no result {name!r} of the paper; {hint} are {', '.join(RESULTS)}")
    make, base = RESULTS[name]
    for setting, results in RESULTS_WITH.items():
        if name not in results and (given := getattr(request, setting)) != getattr(ReproductionRequest, setting):
            raise ValueError(f"{setting}={given!r:.80} changes nothing in {name}: it is for {', '.join(results)}")
    page = request.folder / f"{name}.md"
    check_page_writable(
        page, [page.with_suffix(".csv"), page.with_suffix(".png")], _settings_line(name, request), overwrite
    )
    started = time.monotonic()
    result = make(request if request.base else replace(request, base=base))
    return replace(result, seconds=time.monotonic() - started)


def write_result(name: str, result: ReproducedResult, request: ReproductionRequest, command: str) -> list[Path]:
    """Write a result's page NAME.md and NAME.csv to the folder; returns the paths."""
    page = [f"# {result.title}", "", f"`{command}`", "", *(line for note in result.notes for line in (note, ""))]
    page += [*markdown_table(_formatted(result.rows)), ""]
    for title, rows in result.further.items():
        page += [f"## {title}", "", *markdown_table(_formatted(rows)), ""]
    machine = f"{os.cpu_count()} cores, workers={request.workers}"
    page += [f"Took {result.seconds:.0f} s ({machine}), without what the folder had already.", ""]
    page += [_settings_line(name, request), "", "Versions: " + ", ".join(f"{k} {v}" for k, v in versions().items()), ""]
    written = []
    for ending, text in ((".md", "\n".join(page)), (".csv", csv_text(result.rows))):  # it says whose the others are
        written.append(request.folder / f"{name}{ending}")
        with atomic(written[-1]) as file:
            file.write(text.encode())
    return written


def _formatted(rows: Sequence[TableRow]) -> list[TableRow]:
    """The cells of a result's page."""
    return [{name: format_value(value) for name, value in row.items()} for row in rows]


def _settings_line(name: str, request: ReproductionRequest) -> str:
    """The line of a result's page with its settings."""
    told = {key: getattr(request, key) for key in ("base", "pairs", "seed", "rank", "steps", "encoders", "device")}
    told |= {"ratings": request.ratings} if request.ratings else {}
    told |= {"split": request.split} if request.split != "test" else {}
    told |= {"truth": request.truth} if request.truth != "exact" else {}
    return settings_line({**told, "base": request.base or RESULTS[name].base})


def format_value(value: Any) -> str:
    """A value as a cell of a result's page: numbers rounded, NaN as a dash."""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    if math.isnan(value):
        return "-"
    return f"{value:.1e}" if value and abs(value) < 1e-3 else f"{value:.4g}"
