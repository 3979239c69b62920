"""Power: the chance that a planned study sees a difference, by simulating it on the sheets that raters will get."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .plan import LEVELS, Plan
from .sheets import Entry, StudyItems, make_sheets
from .statistics import Crossed

RATER, PAIR, METHOD_ON_PAIR, ANSWER = 0.8, 0.6, 0.5, 0.9
"""Standard deviations, in levels, of what raters, pairs, a method on a pair and single answers add: about what ratings
of single pictures on a scale of six levels show. An assumption, printed beside the power."""
TIES = 0.2
"""Share of comparisons without a preference between equals."""


def power(
    plan: Plan, stuff: StudyItems, simulations: int = 200, on_step: Callable[[int, int], Any] | None = None
) -> list[dict[str, Any]]:
    """The power of a planned study, with half as many raters, as many and twice as many.

    How often the interval of a true difference of `plan.effect` levels, and of a true share of wins `plan.win_rate`,
    between the first two methods leaves out no difference.

    Returns: rows {raters, levels, pairs}; only the forms that the plan asks for, none for a single method.
    """
    if len(plan.methods) < 2:
        return []
    counts = sorted({max(2, plan.raters // 2), plan.raters, 2 * plan.raters})
    sheets = make_sheets(plan, stuff, max(counts))
    kinds = {"levels": _simulate_level_ratings, "pairs": _simulate_comparisons}
    rows, done = [], 0
    for raters in counts:
        row: dict[str, Any] = {"raters": raters}
        for form in plan.forms:
            rows_of = _planned_answers(plan, stuff, sheets[:raters], form)
            seen = 0
            for k in range(simulations):
                seen += kinds[form](plan, rows_of, np.random.default_rng((plan.seed, k)))
                done += 1
                if on_step is not None:
                    on_step(done, len(counts) * len(plan.forms) * simulations)
            row[form] = round(seen / simulations, 3)
        rows.append(row)
    return rows


def _planned_answers(
    plan: Plan, stuff: StudyItems, sheets: Sequence[Sequence[Entry]], form: str
) -> tuple[list[int], list[str]]:
    """For simulations of power: (rater, pair) of each planned answer that tells the first two methods apart."""
    one, two = plan.methods[:2]
    where = stuff.results if form == "levels" else stuff.duels
    wanted = {item: key for key, item in where.items() if key[0] == one and (form == "levels" or key[1] == two)}
    found = [(r, wanted[x.item][-2]) for r, sheet in enumerate(sheets) for x in sheet if x.item in wanted]
    return [r for r, _ in found], [str(pair) for _, pair in found]


def _simulate_level_ratings(plan: Plan, rows: tuple[list[int], list[str]], rng: np.random.Generator) -> bool:
    """Simulate a study's level ratings once, for its power: whether it sees the true difference of `plan.effect`
    levels."""
    crossed = Crossed(*rows, seed=int(rng.integers(2**31)), resamples=400)
    r, p, n = crossed.raters, crossed.pairs, len(crossed.raters)
    common = (LEVELS - 1) / 2 + rng.normal(0, RATER, crossed.sizes[0])[r] + rng.normal(0, PAIR, crossed.sizes[1])[p]
    own = rng.normal(0, METHOD_ON_PAIR, (2, crossed.sizes[1]))[:, p] + rng.normal(0, ANSWER, (2, n))
    given = np.clip(np.rint(common + own + [[plan.effect / 2], [-plan.effect / 2]]), 0, LEVELS - 1)  # the scale's ends
    found = crossed.mean(given[0] - given[1], (1 - LEVELS, LEVELS - 1))
    return found.low > 0 or found.high < 0


def _simulate_comparisons(plan: Plan, rows: tuple[list[int], list[str]], rng: np.random.Generator) -> bool:
    """Simulate a study's paired comparisons once, for its power: whether it sees the true share of wins,
    `plan.win_rate`."""
    crossed = Crossed(*rows, seed=int(rng.integers(2**31)), resamples=400)
    edge = math.log(plan.win_rate / (1 - plan.win_rate))
    odds = edge + rng.normal(0, METHOD_ON_PAIR, crossed.sizes[1])[crossed.pairs]
    tie = TIES / (1 - TIES) * 2  # Davidson's weight of a tie where both are equal
    weights = np.stack([np.exp(odds / 2), np.full_like(odds, tie), np.exp(-odds / 2)], 1)
    chance = np.cumsum(weights / weights.sum(1, keepdims=True), 1)
    won = 1 - (rng.random(len(odds))[:, None] > chance).sum(1) / 2
    found = crossed.mean(won, (0, 1), null=0.5)
    return found.low > 0.5 or found.high < 0.5
