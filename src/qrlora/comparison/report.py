"""What a study found, for people and programs: one Markdown page, a CSV file for each table."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import output_files
from ..config import as_dict
from ..world.classifiers import classifier_accuracy
from .fusion_comparison import RunSummary
from .jobs import versions
from .settings import ComparisonSettings
from .summary_tables import SCORES, SPAN, Findings, Row

TABLES = ("pictures", "table", "differences", "interference", "layers")
"""What a study's page is made of, each a CSV file beside it."""


def check(settings: ComparisonSettings, folder: Path, overwrite: bool) -> None:
    """That a study's files can be written, before its base is opened. Raises as `check_page`."""
    page = folder / f"{settings.equal}.md"
    beside = [folder / f"{settings.equal}-{name}.csv" for name in TABLES] + [page.with_suffix(".png")]
    check_page(page, beside, settings_line(as_dict(settings)), overwrite)
    for room in ("adapters", "results"):
        output_files.check(folder / room / page.name, overwrite=True)


def check_page(page: Path, beside: Iterable[Path], line: str, overwrite: bool) -> None:
    """That a page and the files beside it can be written, before anything is computed: they are not there, or the page
    has this line, which says what they were made with, and they are made anew.

    Raises: FileExistsError: they are of other settings, and may not be replaced.  OSError: see `outputs.check`.
    """
    ours = page.is_file() and line in page.read_text(encoding="utf-8", errors="replace").splitlines()
    for path in (page, *beside):
        output_files.check(path, overwrite or ours)


def settings_line(told: Mapping[str, Any]) -> str:
    """The line of a page that says what it was made with."""
    return "Settings: " + ", ".join(f"{name}={value}" for name, value in told.items())


def write(account: RunSummary, found: Findings, folder: Path, stem: str, command: str) -> list[Path]:
    """`stem`.md with everything, and a CSV file for each table. Returns the files.

    Raises: OSError: a full disk; files that are not whole are not left.
    """
    written = [folder / f"{stem}.md"]  # first: it says whose the others are
    _write(written[0], page(account, found, command))
    for name in TABLES:
        if rows := getattr(found, name):
            written.append(folder / f"{stem}-{name}.csv")
            _write(written[-1], as_csv(rows))
    return written


def page(account: RunSummary, found: Findings, command: str) -> str:
    """The Markdown page."""
    study, settings = account.study, account.study.settings
    accuracy = classifier_accuracy()
    judged = (
        f"The judges name true pictures that they have not seen with {accuracy['content']:.1%} (thing) and "
        f"{accuracy['style']:.1%} (style) accuracy."
    )
    lines = [
        f"# Content-style fusion on {settings.base}, equal {settings.equal}",
        "",
        f"`{command}`",
        "",
        f'{account.counts}. {len(study.pairs)} pairs of the split "{settings.split}", {settings.seeds} pictures each; '
        "a pair's pictures are averaged, and intervals (95 %, bootstrap) are over pairs.",
        "Pictures of one's own: nobody knows the true ones." if settings.pictures else judged,
        "",
        "In hundredths, with the interval. Trained: the numbers of both adapters, without what a method learns when it "
        "fuses.",
        "",
        *_rows(*compact(found)),
        "",
        *(f"- `{name}`: {meaning}" for name, meaning in SCORES.items()),
        "",
        "## Share of the span between *none* and *oracle*",
        "",
        "(score - none) / (oracle - none), in hundredths; a dash where the two ends are not clearly apart.",
        "",
        *_rows(*compact(found, SPAN)),
        "",
        "## Paired differences",
        "",
        *markdown([_shown(row, "value", 3) for row in found.differences]),
        "",
        "## Does interference predict leakage?",
        "",
        "Measures of the two adapters' factors alone; Spearman's rank correlation with the leakage in the pictures.",
        "",
        *_prediction(found),
        "",
        "## Learning",
        "",
        *markdown(_settings(account)),
        "",
        *_listed("Cut to a file's rank, largest relative error", [f"`{m}`: {x:.1%}" for m, x in found.cut.items()]),
        *_listed("Failed", [f"{title}: {reason}" for title, reason in account.failed.items()]),
        *_listed("Missing", [job.title for job in account.missing]),
        settings_line(as_dict(settings)),
        "",
        "Versions: " + ", ".join(f"{k} {v}" for k, v in versions().items()),
        "",
    ]
    return "\n".join(lines)


def compact(found: Findings, kind: str = "value") -> tuple[list[str], list[list[str]]]:
    """(columns, rows) with a row for each method: "62 [50, 73]", in hundredths, "-" where there is no figure.

    "trained" is how many numbers its adapters train, together.
    """
    scores = list(dict.fromkeys(row["score"] for row in found.table if not math.isnan(row.get(kind, math.nan))))
    methods = dict.fromkeys(row["method"] for row in found.table)
    cells = {(row["method"], row["score"]): row for row in found.table}
    rows = []
    for method in methods:
        pairs = max(row["pairs"] for row in found.table if row["method"] == method)
        figures = [cell(cells[method, score], kind) for score in scores]
        rows.append([method, str(pairs), f"{found.trained[method]:,}", *figures])
    return ["method", "pairs", "trained", *scores], rows


def cell(row: Row, kind: str) -> str:
    """One estimate in hundredths."""
    value, low, high = (row.get(name, math.nan) for name in (kind, f"{kind}: low", f"{kind}: high"))
    if math.isnan(value):
        return "-"
    return f"{100 * value:.0f}" if math.isnan(low) else f"{100 * value:.0f} [{100 * low:.0f}, {100 * high:.0f}]"


def as_csv(rows: Sequence[Row]) -> str:
    """Rows with the keys of all as columns; NaN is left empty."""
    buffer = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows)
    return buffer.getvalue()


def _rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return markdown([dict(zip(columns, row, strict=True)) for row in rows])


def _listed(title: str, lines: Sequence[str]) -> list[str]:
    """A section, if there is anything in it."""
    return [f"## {title}", "", *(f"- {line}" for line in lines), ""] if lines else []


def _prediction(found: Findings) -> list[str]:
    if found.interference and not found.layers:
        return ["Content and style are learnt on different layers of this base, so their factors never meet."]
    return markdown([_shown(row, "rank correlation", 2) for row in found.interference])


def _settings(account: RunSummary) -> list[Row]:
    """What each method was learnt with, and how many numbers that trains."""
    rows = []
    for spec, roles in account.study.learning.items():
        for role, told in roles.items():
            names = ("method", "rank", "steps", "learning_rate", "batch_size", "targets")
            rows.append({"variant": spec, "role": role, **{name: told.get(name, "") for name in names}})
    return rows


def _shown(row: Row, kind: str, digits: int) -> Row:
    """A row for a page: its estimate in one cell."""
    estimate = {kind, f"{kind}: low", f"{kind}: high"}
    told = {k: v for k, v in row.items() if k not in estimate}
    value, low, high = (row[name] for name in (kind, f"{kind}: low", f"{kind}: high"))
    text = "-" if math.isnan(value) else f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
    return {**told, kind: text}


def markdown(rows: Sequence[Row]) -> list[str]:
    """A table's lines; all rows have the first one's keys."""
    if not rows:
        return ["(nothing was measured)"]
    head = list(rows[0])
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return lines + [f"| {' | '.join(str(row[name]) for name in head)} |" for row in rows]


def _write(path: Path, text: str) -> None:
    with output_files.atomic(path) as file:
        file.write(text.encode())
