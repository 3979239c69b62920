"""Table 1 with figures 5 and 20: the paper's methods side by side."""

import statistics

from ..comparison import contact_sheet
from ..comparison.figure_data import ContactSheet, ReproducedResult
from ..comparison.summary_tables import SummaryTables, TableRow, summarise
from ..text_files import csv_records
from .published_numbers import TABLE_1, TABLE_1_SCORES
from .request import ReproductionRequest


def table1(request: ReproductionRequest) -> ReproducedResult:
    """Table 1, fusion scores: scores down and methods across, as in the paper, whose own columns for this backbone
    follow.

    Beside its methods `lora`, the plain sum, is run on every base; none and oracle are the ends of the scale.
    """
    rated = _survey_levels(request.ratings) if request.ratings else {}  # refused before the long work
    papers = TABLE_1.get(request.base_model.family.name, {})
    summary = request.run_fusion_comparison(tuple(dict.fromkeys((*papers, "lora", "qr"))))
    found = summarise(summary)
    scores = {row["score"]: _name_in_paper(row["score"]) for row in found.table}
    scores |= {name: name for name in TABLE_1_SCORES if name not in scores.values()}
    rows: list[TableRow] = []
    for score, known_as in scores.items():
        ours = {method: _mean_and_deviation(found, method, score) for method in summary.comparison.variants}
        theirs = {f"paper: {m}": dict(zip(TABLE_1_SCORES, x, strict=True)).get(known_as, "") for m, x in papers.items()}
        if known_as == "user study":
            ours |= {method: cell for method, cell in rated.items() if method in ours}
        rows.append({"score": score, **ours, **theirs})
    count = len(found.pictures) // len(summary.comparison.variants)
    notes = (
        f"{summary.counts}. Mean ± standard deviation over {count} pictures of each method; the paper has 64. "
        "For intervals over pairs and paired differences run `qrlora compare` in this folder with the same "
        "settings: it finds the same jobs done.",
        "DINO and CLIP need --encoders. They compare with the style (-S) and the content picture (-C), so that a copy "
        "of either scores 1. The other scores are those of `qrlora compare`. "
        + (f"User study: mean levels [95 % interval], {request.ratings}." if request.ratings else "Nobody was asked."),
    )
    title = f"Table 1, figures 5 and 20: methods on {request.base}"
    return ReproducedResult(title, rows, notes, ContactSheet(contact_sheet.sheet_rows(summary)))


def _mean_and_deviation(found: SummaryTables, method: str, score: str) -> str:
    """ "0.694 ± 0.084"; "" where the score was not measured."""
    values = [row[score] for row in found.pictures if row["method"] == method and score in row]
    return f"{statistics.fmean(values):.3f} ± {statistics.pstdev(values):.3f}" if values else ""


def _survey_levels(path: str) -> dict[str, str]:
    """For table 1, people's scores of each method: {method: its mean level and interval} for the first question in
    levels.csv of `qrlora survey report`.

    Raises: OSError.  ValueError: not such a file.
    """
    rows = csv_records(path)
    if not rows or not {"question", "method", "value", "low", "high"} <= rows[0].keys():
        raise ValueError(f"{path} is not levels.csv of `qrlora survey report`")
    levels = [row for row in rows if row["question"] == rows[0]["question"] and row["value"]]
    intervals = {x["method"]: f" [{float(x['low']):.2f}, {float(x['high']):.2f}]" if x["low"] else "" for x in levels}
    return {row["method"]: f"{float(row['value']):.2f}{intervals[row['method']]}" for row in levels}


def _name_in_paper(score: str) -> str:
    """A score's name in the paper: "dino-vits16-S" -> "DINO-S"; "" if the paper has no such score."""
    network, _, side = score.rpartition("-")
    return next((f"{name}-{side}" for name in ("DINO", "CLIP") if network.lower().startswith(name.lower())), "")
