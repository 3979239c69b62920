"""A comparison's results as tables: scores with intervals, paired differences, correlations with leakage."""

import math
import statistics as plain
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .decomposition import PART_MEANINGS
from .fusion_comparison import RunSummary
from .statistics import Estimate, correlation_over_pairs, fraction_of_span, mean_over_pairs, paired_difference

SCORE_MEANINGS = {
    "content": "content accuracy (classifier)",
    "style": "style accuracy (classifier)",
    "both": "both correct",
    "nearest": "nearer to the true image than to every wrong one",
    "content_likeness": "cosine similarity with the true image, by the content classifier's features",
    "style_likeness": "cosine similarity with the true image, by the style classifier's features",
    "ssim": "SSIM with the true image",
    "content_comes_out": "how far the content comes out: 0 as any other word, 1 as a word that the base knows",
    "style_comes_out": "the same of the style",
    "leaked_content": "leakage: probability of the style image's content",
    "leaked_style": "leakage: probability of the content image's style",
    "preserved": "unrelated prompts: SSIM with the base's image",
}
"""Score -> its meaning. Scores of vision encoders (dino-vits16-C ...) follow them."""
ENCODER_SCORES = ("-C", "-S", "-T")
"""Ends of a vision encoder's scores: likeness to the content image, to the style image, to the true image."""
SPAN_SCORES = ("content", "style", "both", "nearest", "content_likeness", "style_likeness", "ssim")
"""Scores of which "none" and "oracle" are the lower and the upper bound."""
LEAKAGE = ("leaked_content", "leaked_style")
SPAN = "share of the span"  # a column of the CSV files
TableRow = dict[str, Any]


@dataclass(frozen=True)
class SummaryTables:
    """All tables of a comparison. A table is a list of rows with equal keys; its name is that of its CSV file."""

    pictures: list[TableRow]
    """A row for each generated image."""
    table: list[TableRow]
    """(method, score) -> mean over pairs, interval, share of the span between none and oracle."""
    differences: list[TableRow]
    """(score, first, second) -> mean of first - second over the pairs that both have."""
    interference: list[TableRow]
    """(measure, leakage, methods) -> rank correlation over pairs and methods, and its interval."""
    parts: list[TableRow]
    """(part, method, score) -> as in `table`, of the images that show each adapter by itself: see `decomposition`."""
    known_word_spread: dict[str, float]
    """Role -> `KnownWordScale.spread`, the largest of all jobs; {} with ground truth."""
    layers: list[TableRow]
    """(method, layer) -> mean over pairs of the similarity of the two adapters: see `analysis.Similarity`."""
    trainable_parameters: dict[str, int]
    """{method: trainable parameters of its two adapters together}."""
    truncation_errors: dict[str, float]
    """{method: largest relative error of truncating an update to a file's rank}; only methods with such an error."""


def summarise(summary: RunSummary) -> SummaryTables:
    """The tables of all results that are done: scores averaged over each pair's images, then estimated over pairs."""
    pictures: list[TableRow] = []
    decomposed: dict[str, list[TableRow]] = {part: [] for part in PART_MEANINGS}
    interference: dict[tuple[str, str], Mapping[str, float]] = {}
    shared: dict[tuple[str, str], list[Mapping[str, float]]] = {}
    trainable_parameters: dict[str, int] = {}
    truncation_errors: dict[str, float] = {}
    spread: dict[str, float] = {}
    for job in summary.done:
        result = summary.store.result(job)
        if result["interference"]:
            interference[job.variant, job.pair.name] = result["interference"]
        for row in result["layers"]:
            shared.setdefault((job.variant, row.pop("layer")), []).append(row)
        trainable_parameters[job.variant] = result["parameters"]
        if error := result["truncation_error"]:
            truncation_errors[job.variant] = max(error, truncation_errors.get(job.variant, 0.0))
        labels = {"method": job.variant, "pair": job.pair.name}
        provenance = {"device": result["device"], "job": job.identity}
        if result["encoders"]:
            provenance["encoders"] = "; ".join(result["encoders"])
        pictures += [{**labels, **row, **provenance} for row in result["rows"]]
        for role, x in result.get("known_word_spread", {}).items():
            spread[role] = max(x, spread.get(role, 0.0))
        for row in result.get("parts", []):
            decomposed[row["part"]].append({**labels, **row})
    means = _means_by_pair(pictures)
    scores = _scores_of(means)
    order = [variant for variant in summary.comparison.variants if variant in means]
    layers: list[TableRow] = [
        {"method": m, "layer": layer, "pairs": len(rows), **{k: plain.fmean(row[k] for row in rows) for k in rows[0]}}
        for (m, layer), rows in shared.items()
    ]
    tables = (
        _score_table(means, order, scores),
        _paired_differences_table(means, order, scores),
        _leakage_correlations(means, interference, order),
        _parts_table(decomposed, order),
    )
    return SummaryTables(pictures, *tables, spread, layers, trainable_parameters, truncation_errors)


def _parts_table(decomposed: Mapping[str, Sequence[TableRow]], order: Sequence[str]) -> list[TableRow]:
    """`_score_table` of each part, without leakage, which has no meaning where only one role is asked for."""
    rows = []
    for part, images in decomposed.items():
        means = _means_by_pair(images)
        scores = [name for name in _scores_of(means) if name not in LEAKAGE]
        table = _score_table(means, [method for method in order if method in means], scores)
        rows += [{"part": part, **row} for row in table]
    return rows


def _scores_of(means: "Means") -> list[str]:
    """The scores that are there, in the order of the tables."""
    found = {name for pairs in means.values() for scores in pairs.values() for name in scores}
    return [name for name in SCORE_MEANINGS if name in found] + sorted(found - SCORE_MEANINGS.keys())


Means = dict[str, dict[str, dict[str, float]]]
"""{method: {pair: {score: mean over its images}}}."""


def _means_by_pair(pictures: Sequence[TableRow]) -> Means:
    """Each method's scores averaged over the images of a pair, for the tables."""
    grouped: dict[str, dict[str, list[TableRow]]] = {}
    for row in pictures:
        grouped.setdefault(row["method"], {}).setdefault(row["pair"], []).append(row)
    return {
        method: {
            pair: {
                n: plain.fmean(r[n] for r in rows) for n in rows[0] if n in SCORE_MEANINGS or n.endswith(ENCODER_SCORES)
            }
            for pair, rows in pairs.items()
        }
        for method, pairs in grouped.items()
    }


def _score_table(means: Means, order: Sequence[str], scores: Sequence[str]) -> list[TableRow]:
    """The table of scores: estimates over pairs, a row for each method and score."""
    rows = []
    for method in order:
        for score in scores:
            values = [x[score] for x in means[method].values()]
            row: TableRow = {"method": method, "score": score, **_estimate_columns(mean_over_pairs(values))}
            if {"none", "oracle"} <= means.keys() and score in SPAN_SCORES:
                pairs = [p for p in means[method] if p in means["none"] and p in means["oracle"]]
                columns = [[means[m][p][score] for p in pairs] for m in (method, "none", "oracle")]
                row |= _estimate_columns(fraction_of_span(columns[0], columns[1], columns[2]), SPAN)
            rows.append(row)
    return _with_equal_keys(rows)


def _paired_differences_table(means: Means, order: Sequence[str], scores: Sequence[str]) -> list[TableRow]:
    """The table of paired differences of each two methods."""
    rows = []
    methods = [name for name in order if name not in ("none", "oracle")]
    for k, first in enumerate(methods):
        for second in methods[k + 1 :]:
            pairs = [p for p in means[first] if p in means[second]]
            for score in scores:
                values = [[means[m][p][score] for p in pairs] for m in (first, second)]
                estimate = paired_difference(values[0], values[1])
                rows.append({"score": score, "first": first, "second": second, **_estimate_columns(estimate)})
    return rows


def _leakage_correlations(
    means: Means, interference: Mapping[tuple[str, str], Mapping[str, float]], order: Sequence[str]
) -> list[TableRow]:
    """How well each measure of interference predicts each leakage: over all methods together, and within each."""
    methods = [m for m in order if any(x == m for x, _ in interference)]
    if not methods or not all(LEAKAGE[0] in x for m in methods for x in means[m].values()):
        return []
    measures = next(iter(interference.values())).keys()
    groups = [("all", methods), *((method, [method]) for method in methods if len(methods) > 1)]
    rows = []
    for measure in measures:
        for leak in LEAKAGE:
            for name, within in groups:
                pairs = list(dict.fromkeys(pair for m, pair in interference if m in within))
                points = [
                    [(interference[m, p][measure], means[m][p][leak]) for m in within if (m, p) in interference]
                    for p in pairs
                ]
                columns = [([abs(x) for x, _ in point], [y for _, y in point]) for point in points]
                labels = {"measure": "cosine, absolute" if measure == "cosine" else measure, "leakage": leak}
                rows.append(
                    {
                        **labels,
                        "methods": name,
                        **_estimate_columns(correlation_over_pairs(columns), "rank correlation"),
                    }
                )
    return rows


def _estimate_columns(estimate: Estimate, name: str = "value") -> TableRow:
    counted = "pairs" if name != SPAN else f"{SPAN}: pairs"
    return {name: estimate.value, f"{name}: low": estimate.low, f"{name}: high": estimate.high, counted: estimate.count}


def _with_equal_keys(rows: list[TableRow]) -> list[TableRow]:
    """Every row with the same keys."""
    keys = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name, math.nan) for name in keys} for row in rows]
