"""Write a comparison's report: one Markdown page, and a CSV file for each table."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import output_files
from ..config import as_dict
from ..text_files import write_text
from ..world.classifiers import classifier_accuracy
from .decomposition import PART_MEANINGS
from .fusion_comparison import RunSummary
from .jobs import versions
from .settings import ComparisonSettings
from .statistics import NO_ESTIMATE, in_hundredths
from .summary_tables import SCORE_MEANINGS, SPAN, SummaryTables, TableRow
from .weak_adapter import verdicts_of_methods

TABLES = ("pictures", "table", "parts", "differences", "interference", "layers")
"""Fields of `SummaryTables`, each written as a CSV file beside the page."""


def check_outputs_writable(settings: ComparisonSettings, folder: Path, overwrite: bool) -> None:
    """Check that a comparison's files can be written, before its base is opened. Raises as `check_page_writable`."""
    page = folder / f"{settings.equal}.md"
    beside = [folder / f"{settings.equal}-{name}.csv" for name in TABLES] + [page.with_suffix(".png")]
    check_page_writable(page, beside, settings_line(as_dict(settings)), overwrite)
    for subfolder in ("adapters", "results"):
        output_files.check_writable(folder / subfolder / page.name, overwrite=True)


def check_page_writable(page: Path, beside: Iterable[Path], line: str, overwrite: bool) -> None:
    """Check that a page and the files beside it can be written, before anything is computed: either they do not exist,
    or the page has this settings line, so that they are of the same settings.

    Raises: FileExistsError: they are of other settings, and may not be replaced.
            OSError: see `output_files.check_writable`.
    """
    ours = page.is_file() and line in page.read_text(encoding="utf-8", errors="replace").splitlines()
    for path in (page, *beside):
        output_files.check_writable(path, overwrite or ours)


def settings_line(settings: Mapping[str, Any]) -> str:
    """The line of a page that holds the settings it was made with."""
    return "Settings: " + ", ".join(f"{name}={value}" for name, value in settings.items())


def write_report(summary: RunSummary, tables: SummaryTables, folder: Path, stem: str, command: str) -> list[Path]:
    """Write `stem`.md and a CSV file for each table that has rows; returns the paths. Of a page that was there before,
    no other table is left, nor a sheet where there is nothing to show: they would pass for this page's.

    Raises: OSError: a full disk; files that are not whole are not left.
    """
    written = [folder / f"{stem}.md"]  # first: its settings line is what the other files are checked by
    write_text(written[0], markdown_page(summary, tables, command))
    for name in TABLES:
        path = folder / f"{stem}-{name}.csv"
        if rows := getattr(tables, name):
            write_text(path, csv_text(rows))
            written.append(path)
        else:
            path.unlink(missing_ok=True)
    if not tables.table:
        written[0].with_suffix(".png").unlink(missing_ok=True)
    return written


def markdown_page(summary: RunSummary, tables: SummaryTables, command: str) -> str:
    """The report's Markdown page. Args: command: the command line that made it."""
    comparison, settings = summary.comparison, summary.comparison.settings
    accuracy = classifier_accuracy()
    classifiers = (
        f"The classifiers' accuracy on held-out true images: content {accuracy['content']:.1%}, "
        f"style {accuracy['style']:.1%}."
    )
    lines = [
        f"# Content-style fusion on {settings.base}, equal {settings.equal}",
        "",
        f"`{command}`",
        "",
        f'{summary.counts}. {len(comparison.pairs)} pairs of the split "{settings.split}", {settings.seeds} images '
        "each. A pair's images are averaged; intervals (95 %, bootstrap) are over pairs.",
        "Own images: there is no ground truth." if settings.pictures else classifiers,
        "",
        "In hundredths, with the interval. Trained: the trainable parameters of both adapters, without those of a "
        "method that trains while it fuses.",
        "",
        *_markdown_rows(*compact_table(tables)),
        "",
        *(f"- `{name}`: {meaning}" for name, meaning in SCORE_MEANINGS.items()),
        "",
        "## Share of the span between *none* and *oracle*",
        "",
        "(score - none) / (oracle - none), in hundredths; a dash where the interval of oracle - none holds 0.",
        "",
        *_markdown_rows(*compact_table(tables, SPAN)),
        "",
        *_parts_section(tables),
        "## Paired differences",
        "",
        *markdown_table([_row_with_interval(row, "value", 3) for row in tables.differences]),
        "",
        "## Does interference predict leakage?",
        "",
        "Measures of the two adapters' factors alone; Spearman's rank correlation with the leakage in the images.",
        "",
        *_leakage_section(tables),
        "",
        "## Training",
        "",
        *markdown_table(_training_settings_rows(summary)),
        "",
        *_bullet_section(
            "Cut to a file's rank, largest relative error",
            [f"`{m}`: {x:.1%}" for m, x in tables.truncation_errors.items()],
        ),
        *_bullet_section("Failed", [f"{title}: {reason}" for title, reason in summary.failed.items()]),
        *_bullet_section("Missing", [job.title for job in summary.missing]),
        settings_line(as_dict(settings)),
        "",
        "Versions: " + ", ".join(f"{k} {v}" for k, v in versions().items()),
        "",
    ]
    return "\n".join(lines)


def compact_table(tables: SummaryTables, kind: str = "value") -> tuple[list[str], list[list[str]]]:
    """The report's table (columns, rows) with a row for each method and cells such as "62 [50, 73]", in hundredths;
    "-": no estimate.

    The column "trained" holds the trainable parameters of its two adapters.
    """
    scores = list(dict.fromkeys(row["score"] for row in tables.table if not math.isnan(row.get(kind, math.nan))))
    methods = dict.fromkeys(row["method"] for row in tables.table)
    cells = {(row["method"], row["score"]): row for row in tables.table}
    rows = []
    for method in methods:
        pairs = max(row["pairs"] for row in tables.table if row["method"] == method)
        figures = [estimate_cell(cells[method, score], kind) for score in scores]
        rows.append([method, str(pairs), f"{tables.trainable_parameters[method]:,}", *figures])
    return ["method", "pairs", "trained", *scores], rows


def parts_table(tables: SummaryTables) -> tuple[list[str], list[list[str]]]:
    """The report's table (columns, rows) with a row for each method and part, as `compact_table`."""
    scores = list(dict.fromkeys(row["score"] for row in tables.parts))
    rows = []
    for method in dict.fromkeys(row["method"] for row in tables.parts):
        for part in PART_MEANINGS:
            cells = {row["score"]: row for row in tables.parts if (row["method"], row["part"]) == (method, part)}
            if cells:
                rows.append([method, part, *(estimate_cell(cells[x], "value") for x in scores)])
    return ["method", "asked for", *scores], rows


def estimate_cell(row: TableRow, kind: str) -> str:
    """One estimate as a cell of the report, in hundredths."""
    value, low, high = (row.get(name, math.nan) for name in (kind, f"{kind}: low", f"{kind}: high"))
    return in_hundredths(NO_ESTIMATE._replace(value=value, low=low, high=high))


def csv_text(rows: Sequence[TableRow]) -> str:
    """Rows of a report as CSV, with the union of their keys as columns; NaN becomes an empty cell."""
    buffer = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows)
    return buffer.getvalue()


def _markdown_rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return markdown_table([dict(zip(columns, row, strict=True)) for row in rows])


def _bullet_section(title: str, lines: Sequence[str]) -> list[str]:
    """A Markdown section with a bullet list; nothing if the list is empty."""
    return [f"## {title}", "", *(f"- {line}" for line in lines), ""] if lines else []


def _parts_section(tables: SummaryTables) -> list[str]:
    """The report's section on each adapter by itself; nothing if that was not asked for."""
    if not tables.parts:
        return []
    shown = [f"- {part}: {meaning}" for part, meaning in PART_MEANINGS.items()]
    weak = [f"- {line}" for line in verdict_lines(tables)]
    return ["## Each adapter by itself", "", *_markdown_rows(*parts_table(tables)), "", *weak, "", *shown, ""]


def verdict_lines(tables: SummaryTables) -> list[str]:
    """The report's lines "method: which of its adapters is weak"."""
    return [f"{method}: {text}" for method, text in verdicts_of_methods(tables.parts, tables.known_word_spread).items()]


def _leakage_section(tables: SummaryTables) -> list[str]:
    if tables.interference and not tables.layers:
        return ["Content and style adapters are on different layers of this base, so their factors do not interfere."]
    return markdown_table([_row_with_interval(row, "rank correlation", 2) for row in tables.interference])


def _training_settings_rows(summary: RunSummary) -> list[TableRow]:
    """A row of the report for each adapter's main settings."""
    rows = []
    for spec, roles in summary.comparison.training_settings.items():
        for role, settings in roles.items():
            names = ("method", "rank", "steps", "learning_rate", "batch_size", "targets")
            rows.append({"variant": spec, "role": role, **{name: settings.get(name, "") for name in names}})
    return rows


def _row_with_interval(row: TableRow, kind: str, digits: int) -> TableRow:
    """A row of the report with its estimate and interval merged into one cell."""
    estimate = {kind, f"{kind}: low", f"{kind}: high"}
    others = {k: v for k, v in row.items() if k not in estimate}
    value, low, high = (row[name] for name in (kind, f"{kind}: low", f"{kind}: high"))
    text = "-" if math.isnan(value) else f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
    return {**others, kind: text}


def markdown_table(rows: Sequence[TableRow]) -> list[str]:
    """The lines of a report's Markdown table; all rows have the first one's keys."""
    if not rows:
        return ["(nothing was measured)"]
    head = list(rows[0])
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return lines + [f"| {' | '.join(str(row[name]) for name in head)} |" for row in rows]
