"""What a study found, estimated over pairs: scores, shares of the span, paired differences, what predicts leakage."""

import math
import statistics as plain
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .fusion_comparison import RunSummary
from .statistics import Estimate, correlation, difference, mean, share

SCORES = {
    "content": "thing recognised",
    "style": "style recognised",
    "both": "both recognised",
    "content_likeness": "content judge's features, cosine with the true picture's",
    "style_likeness": "style judge's features, cosine with the true picture's",
    "ssim": "structural similarity with the true picture",
    "leaked_content": "leakage: probability of the style picture's thing",
    "leaked_style": "leakage: probability of the content picture's style",
    "preserved": "unrelated prompts: structural similarity with the base's picture",
}
"""Score -> what it is. Those of encoders (dino-vits16-C ...) follow them."""
SPANNED = ("content", "style", "both", "content_likeness", "style_likeness", "ssim")
"""Scores of which the oracle is the upper end."""
LEAKAGE = ("leaked_content", "leaked_style")
SPAN = "share of the span"
Row = dict[str, Any]


@dataclass(frozen=True)
class Findings:
    """All tables of a study. A table is a list of rows with equal keys."""

    pictures: list[Row]
    """A row for each picture."""
    table: list[Row]
    """(method, score) -> mean over pairs, interval, share of the span between none and oracle."""
    differences: list[Row]
    """(score, first, second) -> mean of first - second over the pairs that both have."""
    interference: list[Row]
    """(measure, leakage, methods) -> rank correlation over pairs and methods, and its interval."""
    layers: list[Row]
    """(method, layer) -> mean over pairs of what two adapters share there: see `analysis.Similarity`."""
    trained: dict[str, int]
    """{method: numbers that both its adapters train}."""
    cut: dict[str, float]
    """{method: largest relative error by which an update of it was cut to the rank of a file}; only where it was."""


def findings(account: RunSummary) -> Findings:
    """Read the results that are done, average each pair's pictures, estimate over pairs."""
    pictures: list[Row] = []
    met: dict[tuple[str, str], Mapping[str, float]] = {}
    shared: dict[tuple[str, str], list[Mapping[str, float]]] = {}
    trained: dict[str, int] = {}
    cut: dict[str, float] = {}
    for job in account.done:
        result = account.store.result(job)
        if result["interference"]:
            met[job.variant, job.pair.name] = result["interference"]
        for row in result["layers"]:
            shared.setdefault((job.variant, row.pop("layer")), []).append(row)
        trained[job.variant] = result["parameters"]
        if error := result["truncation_error"]:
            cut[job.variant] = max(error, cut.get(job.variant, 0.0))
        about = {"method": job.variant, "pair": job.pair.name}
        made = {"device": result["device"], "job": job.identity}
        told = {"encoders": "; ".join(result["encoders"])} if result["encoders"] else {}
        pictures += [{**about, **row, **made, **told} for row in result["rows"]]
    means = _by_pair(pictures)
    scores = [name for name in SCORES if any(name in x for pairs in means.values() for x in pairs.values())]
    scores += sorted({n for pairs in means.values() for x in pairs.values() for n in x if n.endswith(("-C", "-S"))})
    order = [variant for variant in account.study.variants if variant in means]
    layers: list[Row] = [
        {"method": m, "layer": layer, "pairs": len(rows), **{k: plain.fmean(row[k] for row in rows) for k in rows[0]}}
        for (m, layer), rows in shared.items()
    ]
    tables = (_table(means, order, scores), _differences(means, order, scores), _predictions(means, met, order))
    return Findings(pictures, *tables, layers, trained, cut)


Means = dict[str, dict[str, dict[str, float]]]
"""{method: {pair: {score: mean over its pictures}}}."""


def _by_pair(pictures: Sequence[Row]) -> Means:
    grouped: dict[str, dict[str, list[Row]]] = {}
    for row in pictures:
        grouped.setdefault(row["method"], {}).setdefault(row["pair"], []).append(row)
    return {
        method: {
            pair: {n: plain.fmean(r[n] for r in rows) for n in rows[0] if n in SCORES or n.endswith(("-C", "-S"))}
            for pair, rows in pairs.items()
        }
        for method, pairs in grouped.items()
    }


def _table(means: Means, order: Sequence[str], scores: Sequence[str]) -> list[Row]:
    rows = []
    for method in order:
        for score in scores:
            values = [x[score] for x in means[method].values()]
            row: Row = {"method": method, "score": score, **_flat(mean(values))}
            if {"none", "oracle"} <= means.keys() and score in SPANNED:
                pairs = [p for p in means[method] if p in means["none"] and p in means["oracle"]]
                columns = [[means[m][p][score] for p in pairs] for m in (method, "none", "oracle")]
                row |= _flat(share(columns[0], columns[1], columns[2]), SPAN)
            rows.append(row)
    return _even(rows)


def _differences(means: Means, order: Sequence[str], scores: Sequence[str]) -> list[Row]:
    rows = []
    methods = [name for name in order if name not in ("none", "oracle")]
    for k, first in enumerate(methods):
        for second in methods[k + 1 :]:
            pairs = [p for p in means[first] if p in means[second]]
            for score in scores:
                values = [[means[m][p][score] for p in pairs] for m in (first, second)]
                estimate = difference(values[0], values[1])
                rows.append({"score": score, "first": first, "second": second, **_flat(estimate)})
    return rows


def _predictions(means: Means, met: Mapping[tuple[str, str], Mapping[str, float]], order: Sequence[str]) -> list[Row]:
    """How well each measure of interference predicts each leakage: over all methods together, and within each."""
    methods = [m for m in order if any(x == m for x, _ in met)]
    if not methods or not all(LEAKAGE[0] in x for m in methods for x in means[m].values()):
        return []
    measures = next(iter(met.values())).keys()
    groups = [("all", methods), *((method, [method]) for method in methods if len(methods) > 1)]
    rows = []
    for measure in measures:
        for leak in LEAKAGE:
            for name, within in groups:
                pairs = list(dict.fromkeys(pair for m, pair in met if m in within))
                points = [[(met[m, p][measure], means[m][p][leak]) for m in within if (m, p) in met] for p in pairs]
                columns = [([abs(x) for x, _ in point], [y for _, y in point]) for point in points]
                told = {"measure": "cosine, absolute" if measure == "cosine" else measure, "leakage": leak}
                rows.append({**told, "methods": name, **_flat(correlation(columns), "rank correlation")})
    return rows


def _flat(estimate: Estimate, name: str = "value") -> Row:
    counted = "pairs" if name != SPAN else f"{SPAN}: pairs"
    return {name: estimate.value, f"{name}: low": estimate.low, f"{name}: high": estimate.high, counted: estimate.count}


def _even(rows: list[Row]) -> list[Row]:
    """Every row with the same keys."""
    keys = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name, math.nan) for name in keys} for row in rows]
