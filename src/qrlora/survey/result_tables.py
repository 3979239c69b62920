"""The tables of a rating study's results: mean levels, differences, wins, agreement, people against machines."""

import math
import statistics as plain
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from ..comparison.statistics import rank_correlation
from .counted_answers import Answers, Given, values
from .plan import LEVELS, Picture, Plan
from .statistics import LEVEL, Crossed, Estimate, alpha_estimate, bradley_terry_davidson, holm, quotient

Row = dict[str, Any]
SCALE, SHARE = (0, LEVELS - 1), (0, 1)
"""What a mean level, and a share, can be."""
TABLES = {
    "levels": "Mean level",
    "differences": "Paired differences in level, within rater and input",
    "wins": "Paired comparisons: share of wins, a tie as half of one",
    "strengths": "Strength: log-odds in the model of Bradley, Terry and Davidson",
    "agreement": "Agreement",
    "machines": "People and machines: rank correlation over pictures",
    "conduct": "How it was answered",
    "raters": "Raters",
}
"""Table -> its title."""


def result_tables(plan: Plan, answers: Answers, pictures: Sequence[Picture]) -> dict[str, list[Row]]:
    """All tables of results. Estimates are of those whom no rule leaves out; "all" counts everybody who finished."""
    kept, everybody = answers.counted(), answers.counted(everybody=True)
    tables = {}
    makers = (_level_table, _difference_table, _win_table, _strength_table)
    for name, make in zip(("levels", "differences", "wins", "strengths"), makers, strict=True):
        rows, others = make(plan, kept), make(plan, everybody)
        same = {_key(row): row["value"] for row in others}
        tables[name] = [{**row, "all": same.get(_key(row), math.nan)} for row in rows]
    tables["agreement"] = _agreement_table(plan, kept)
    tables["machines"] = _machine_correlation_table(plan, kept, pictures)
    tables["conduct"] = _conduct_table(plan, kept)
    tables["raters"] = _rater_table(answers)
    return tables


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("question", "method", "first", "second"))


def _flat(found: Estimate) -> Row:
    counts = {"answers": found.answers, "raters": found.raters, "inputs": found.pairs}
    return {"value": found.value, "low": found.low, "high": found.high, **counts}


def _crossed(given: Sequence[Given], seed: int) -> Crossed:
    return Crossed([x.rater for x in given], [x.pair for x in given], seed)


def _level_table(plan: Plan, given: Sequence[Given]) -> list[Row]:
    """A table of each method's mean level, with its interval."""
    rows = []
    for q in plan.of("levels"):
        mine = values(given, "levels", q.name)
        crossed, level = _crossed(mine, plan.seed), np.array([float(x.value) for x in mine])
        for method in plan.methods:
            chosen = np.array([x.first == method for x in mine], dtype=bool)
            rows.append({"question": q.name, "method": method, **_flat(crossed.mean(level, SCALE, chosen))})
    return rows


def _difference_table(plan: Plan, given: Sequence[Given]) -> list[Row]:
    """A table of the differences between every two methods' levels."""
    rows: list[Row] = []
    for q in plan.of("levels"):
        by: dict[tuple[int, str, int], dict[str, int]] = defaultdict(dict)
        for x in values(given, "levels", q.name):
            by[x.rater, x.pair, x.seed][x.first] = x.value
        found = []
        for first, second in combinations(plan.methods, 2):
            both = {key: told for key, told in by.items() if first in told and second in told}
            crossed = Crossed([key[0] for key in both], [key[1] for key in both], plan.seed)
            difference = np.array([float(told[first] - told[second]) for told in both.values()])
            estimate = crossed.mean(difference, (-SCALE[1], SCALE[1]))
            found.append({"question": q.name, "first": first, "second": second, **_flat(estimate), "p": estimate.p})
        rows += _with_holm(found)
    return rows


def _win_table(plan: Plan, given: Sequence[Given]) -> list[Row]:
    """A table of how often each of two methods won their paired comparisons."""
    rows: list[Row] = []
    for q in plan.of("pairs"):
        mine, found = values(given, "pairs", q.name), []
        crossed, won = _crossed(mine, plan.seed), np.array([(x.value + 1) / 2 for x in mine])
        for first, second in combinations(plan.methods, 2):
            chosen = np.array([(x.first, x.second) == (first, second) for x in mine], dtype=bool)
            estimate = crossed.mean(won, SHARE, chosen, null=0.5)
            told = {name: sum(x.value == v for x, c in zip(mine, chosen, strict=True) if c) for name, v in OUTCOMES}
            who = {"question": q.name, "first": first, "second": second}
            found.append({**who, **_flat(estimate), **told, "p": estimate.p})
        rows += _with_holm(found)
    return rows


OUTCOMES = (("first won", 1), ("second won", -1), ("tied", 0))


def _with_holm(rows: list[Row]) -> list[Row]:
    """p for there being several pairs of methods."""
    adjusted = holm([row["p"] for row in rows])
    return [{**row, "p, Holm": p} for row, p in zip(rows, adjusted, strict=True)]


def _strength_table(plan: Plan, given: Sequence[Given]) -> list[Row]:
    """A table of the methods' strengths in the model of Bradley, Terry and Davidson."""
    rows: list[Row] = []
    duels, count = list(combinations(range(len(plan.methods)), 2)), len(plan.methods)
    for q in plan.of("pairs"):
        mine = values(given, "pairs", q.name)
        crossed = _crossed(mine, plan.seed)
        outcomes = np.zeros((len(mine), len(duels), 3))
        for k, x in enumerate(mine):
            duel = duels.index((plan.methods.index(x.first), plan.methods.index(x.second)))
            outcomes[k, duel, [v for _, v in OUTCOMES].index(x.value)] = 1
        flat = outcomes.reshape(len(mine), 3 * len(duels))

        def strengths(sums: np.ndarray) -> np.ndarray:
            return bradley_terry_davidson(sums.reshape(*sums.shape[:-1], len(duels), 3), duels, count)

        found = crossed.estimates(flat, strengths)
        for method, estimate in zip((*plan.methods, "(ease of ties)"), found, strict=True):
            rows.append({"question": q.name, "method": method, **_flat(estimate)})
    return rows


def _agreement_table(plan: Plan, given: Sequence[Given]) -> list[Row]:
    """A table of how far raters agree with each other, and with themselves."""
    rows: list[Row] = []
    for q in plan.questions:
        mine = values(given, q.form, q.name)
        raters, units = sorted({x.rater for x in mine}), sorted({x.item for x in mine})
        matrix = np.full((len(raters), len(units)), -1)
        pair_of = {x.item: x.pair for x in mine}
        low = 0 if q.form == "levels" else -1
        for x in mine:
            matrix[raters.index(x.rater), units.index(x.item)] = x.value - low
        ordinal = q.form == "levels"
        number, kind = (LEVELS, "ordinal") if ordinal else (len(OUTCOMES), "nominal")
        measures = {
            f"Krippendorff's alpha, {kind}": alpha_estimate(
                matrix, [pair_of[x] for x in units], number, ordinal, plan.seed
            ),
            "the same answer to what came twice": _self_agreement(plan, given, q),
        }
        rows += [{"question": q.name, "measure": name, **_flat(found)} for name, found in measures.items()]
    return rows


def _self_agreement(plan: Plan, given: Sequence[Given], q: Any) -> Estimate:
    """Share of repeated items that were answered as the first time, a row of the table of agreement."""
    key = {(x.rater, x.pair, x.seed, x.first, x.second): x.value for x in values(given, q.form, q.name)}
    again = values(given, q.form, q.name, "repeat")
    again = [x for x in again if (x.rater, x.pair, x.seed, x.first, x.second) in key]
    same = [float(key[x.rater, x.pair, x.seed, x.first, x.second] == x.value) for x in again]
    return _crossed(again, plan.seed).mean(np.array(same), SHARE)


def _machine_correlation_table(plan: Plan, given: Sequence[Given], pictures: Sequence[Picture]) -> list[Row]:
    """A table of Spearman's rho between an image's mean level and what machines said of it."""
    scores = {(x.method, x.pair, x.seed): x.scores for x in pictures if x.kind == "result" and x.scores}
    names = list(dict.fromkeys(name for told in scores.values() for name in told))
    if not names:
        return []
    from ..comparison.summary_tables import SCORE_MEANINGS  # with torch, which other studies do without

    rows: list[Row] = []
    for q in plan.of("levels"):
        mine = [x for x in values(given, "levels", q.name) if (x.first, x.pair, x.seed) in scores]
        shown = sorted({(x.first, x.pair, x.seed) for x in mine})
        if not shown:
            continue
        crossed = _crossed(mine, plan.seed)
        sums = np.zeros((2, crossed.sizes[0], len(shown)))
        pair_of = {x.pair: int(k) for x, k in zip(mine, crossed.pairs, strict=True)}
        for x, r in zip(mine, crossed.raters, strict=True):
            sums[:, r, shown.index((x.first, x.pair, x.seed))] += (x.value, 1)
        draws = (crossed.of_raters[:400], crossed.of_pairs[:400][:, [pair_of[p] for _, p, _ in shown]].astype(int))
        for name in names:
            score = np.array([scores[x].get(name, math.nan) for x in shown])
            about = {"question": q.name, "machine": name, "what it says": SCORE_MEANINGS.get(name, "")}
            rows.append({**about, **_spearman_row(sums, score, draws), "pictures": len(shown)})
    return rows


def _spearman_row(sums: np.ndarray, score: np.ndarray, draws: tuple[np.ndarray, np.ndarray]) -> Row:
    """A row of the table of correlations: Spearman's rho with its interval, from resampled raters and pairs."""

    def rho(of_raters: np.ndarray, times: np.ndarray) -> float:
        """Spearman's rho of one resample."""
        level = quotient(np.moveaxis(of_raters @ sums, 0, -1))[:, 0]
        index = np.repeat(np.arange(len(score)), times)
        index = index[np.isfinite(level[index]) & np.isfinite(score[index])]
        return rank_correlation(level[index].tolist(), score[index].tolist())

    value = rho(np.ones(sums.shape[1]), np.ones(len(score), dtype=int))
    drawn = np.array([rho(r, p) for r, p in zip(*draws, strict=True)])
    drawn = drawn[np.isfinite(drawn)]
    enough = len(drawn) > 0.95 * len(draws[0])
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if enough else (math.nan, math.nan)
    return {"value": value, "low": float(low), "high": float(high)}


def _conduct_table(plan: Plan, given: Sequence[Given]) -> list[Row]:
    """A table of how people rated: side bias, drift over the sheet, time, checks."""
    duels = [x for x in given if x.form == "pairs" and x.role == "rating" and x.value]
    left = np.array([float((x.value == 1) != x.flipped) for x in duels])
    levels = [x for x in given if x.form == "levels" and x.role == "rating"]
    checks = [x for x in given if x.passed is not None]
    last = max((x.place for x in given), default=1)
    place = np.array([x.place / last for x in levels])
    level = np.array([float(x.value) for x in levels])
    moments = np.stack([place * level, place, level, place**2, np.ones(len(levels))], 1) if levels else np.zeros((0, 5))

    def slope(sums: np.ndarray) -> np.ndarray:
        xy, x, y, xx, n = np.moveaxis(sums, -1, 0)
        return quotient(np.stack([n * xy - x * y, n * xx - x * x], -1))

    passed = np.array([float(bool(x.passed)) for x in checks])
    seconds = plain.median(x.seconds for x in given) if given else math.nan
    changed = float(np.mean([x.revisions > 0 for x in given])) if given else math.nan
    (drift,) = _crossed(levels, 0).estimates(moments, slope)
    measures = {
        "the left one preferred, among those with a preference (0.5: no bias)": _crossed(duels, 0).mean(left, SHARE),
        "change of the level from the first to the last page (0: no drift)": drift,
        "checks passed": _crossed(checks, 0).mean(passed, SHARE),
        "seconds of a page, median": Estimate(seconds, answers=len(given)),
        "answers that were changed": Estimate(changed, answers=len(given)),
    }
    return [{"measure": name, **_flat(found)} for name, found in measures.items() if found.answers]


def _rater_table(answers: Answers) -> list[Row]:
    """A table of how many raters began, finished, were left out, and what they told of themselves."""
    people = answers.people
    finished = [x for x in people if x.finished]
    counts: Mapping[str, int] = {
        "begun": len(people),
        "finished": len(finished),
        **{f"left out: {rule}": sum(x.excluded == rule for x in finished) for rule in ("checks", "too fast")},
        "counted": sum(not x.excluded for x in finished),
    }
    rows: list[Row] = [{"what": name, "raters": count} for name, count in counts.items()]
    if finished:
        rows.append({"what": "minutes, median", "raters": round(plain.median(x.minutes for x in finished), 1)})
    for name in ("source", "age", "experience"):
        told = [getattr(x, name) or "not said" for x in finished]
        rows += [{"what": f"{name}: {value}", "raters": told.count(value)} for value in sorted(set(told))]
    return rows
