"""`qrlora survey report`: a page with plots, a CSV file for each table."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import __version__, plots
from ..comparison.report import csv_text
from ..text_files import write_text
from ..web.pages import Pages
from .counted_answers import collect_answers
from .plan import LEVELS, Plan
from .rater_store import Study
from .result_tables import TABLES, Row, result_tables

HIDDEN = ("low", "high")
"""Columns that stand in the cell of "value" on the page."""


def write_report(study: Study, folder: Path) -> tuple[dict[str, list[Row]], list[Path]]:
    """Write a study's report.html, its plots and tables into a folder, from which those of an earlier report go that
    this one does not have. Returns the tables and the files.

    Raises: ValueError: nobody has finished.  OSError: a full disk.
    """
    answers = collect_answers(study)
    finished = sum(x.finished for x in answers.people)
    if not finished:
        begun = len(answers.people)
        raise ValueError(f"nobody has finished yet, {begun} raters have begun: there is nothing to report")
    tables = result_tables(study.plan, answers, list(study.pictures.values()))
    texts = {f"{name}.csv": csv_text(rows) for name, rows in tables.items() if rows}
    drawn = _report_figures(study.plan, tables)
    plotted = [plots.save(figure, folder / f"{name}.png") for name, figure in drawn.items()]
    pages = Pages([Path(__file__).parent])
    told = {
        "plan": study.plan,
        "finished": finished,
        "counted": sum(x.finished and not x.excluded for x in answers.people),
        "open": finished < study.plan.raters,
        "style": pages.files["style.css"].decode(),
        "tables": [(name, TABLES[name], *_shown(rows), name in drawn) for name, rows in tables.items() if rows],
        "version": __version__,
    }
    texts["report.html"] = pages.text("report.html", **told)
    _remove_earlier(folder, [*texts, *(f"{name}.png" for name in drawn)])
    for name, text in texts.items():
        write_text(folder / name, text)
    return tables, [*plotted, *(folder / name for name in texts)]


def _remove_earlier(folder: Path, written: Sequence[str]) -> None:
    """Remove the tables and plots of an earlier report, which would pass for this one's."""
    if (folder / "report.html").exists():
        for name in {f"{table}{ending}" for table in TABLES for ending in (".csv", ".png")} - {*written}:
            (folder / name).unlink(missing_ok=True)


def _shown(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of a table for people."""
    columns = [name for name in rows[0] if name not in HIDDEN]
    return columns, [[report_cell(row, name) for name in columns] for row in rows]


def report_cell(row: Row, name: str) -> str:
    """A value as a cell of the report, an estimate with its interval."""
    value = row[name]
    if name in ("raters", "inputs") and value == 0 and "answers" in row:
        return ""
    if isinstance(value, float):
        low, high = (row.get(x, math.nan) for x in HIDDEN)
        if math.isnan(value):
            return "-"
        if name.startswith("p"):
            return f"{value:.3f}" if value >= 0.001 else "< 0.001"
        return f"{value:.2f} [{low:.2f}, {high:.2f}]" if name == "value" and not math.isnan(low) else f"{value:.2f}"
    return str(value)


def _report_figures(plan: Plan, tables: dict[str, list[Row]]) -> dict[str, Any]:
    """{name: figure} of the report's plots."""
    figures: dict[str, Any] = {}

    def panels(name: str, label: Any) -> dict[str, dict[str, tuple[float, float, float]]]:
        """The estimates of a table as panels of a plot in the report, one for each question."""
        texts = {q.name: q.text for q in plan.questions}
        rows = [row for row in tables[name] if not math.isnan(row["value"]) and label(row)]
        return {
            texts[question]: {label(x): (x["value"], x["low"], x["high"]) for x in rows if x["question"] == question}
            for question in dict.fromkeys(row["question"] for row in rows)
        }

    def duel(row: Row) -> str:
        return f"{row['first']} - {row['second']}"

    def method(row: Row) -> str:
        return row["method"] if row["method"] in plan.methods else ""

    wanted: tuple[tuple[str, Any, dict[str, Any]], ...] = (
        ("levels", method, {"x_label": f"mean level, 0 to {LEVELS - 1}", "limits": (0, LEVELS - 1)}),
        ("differences", duel, {"x_label": "difference in level: first - second", "null": 0}),
        (
            "wins",
            lambda row: duel(row).replace(" - ", " over "),
            {"x_label": "share of wins", "null": 0.5, "limits": (0, 1)},
        ),
        ("strengths", method, {"x_label": "log-odds", "null": 0}),
    )
    for name, label, told in wanted:
        if shown := panels(name, label):
            figures[name] = plots.intervals(shown, **told)
    return figures
