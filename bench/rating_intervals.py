"""How often the intervals of a rating study hold the truth: python bench/rating_intervals.py.

400 made studies of each population, with the sheets of a real plan: 27 pairs of inputs, 2 methods, 5 inputs by levels
and 8 comparisons for each of 60 raters, or of fewer. Levels are whole numbers from 0 to 5. They are compared with the
population's mean, paired differences with the true one, shares of wins with the share in a study that has every rater
compare every pair. Should be 93 to 97 %; nearly all with two raters, whose intervals are nearly the whole scale. No
interval may leave it.
"""

import math
import sys
from pathlib import Path

import numpy as np

from harness import arguments

sys.path.insert(0, str(Path(__file__).parents[1] / "testing"))
import ratings
from qrlora.survey.plan import LEVELS
from qrlora.survey.sheets import make_items, make_sheets
from qrlora.survey.statistics import Crossed, Estimate

USUAL = (0.7, 0.5, 0.4, 0.9)
POPULATIONS = {
    "raters, pairs and answers": (60, 2.5, USUAL),
    "answers alone": (60, 2.5, (0.0, 0.0, 0.0, 1.0)),
    "raters and answers": (60, 2.5, (0.8, 0.0, 0.0, 0.7)),
    "pairs and answers": (60, 2.5, (0.0, 0.7, 0.3, 0.7)),
    "methods on pairs": (60, 2.5, (0.3, 0.3, 0.8, 0.5)),
    "near the end of the scale": (60, 4.3, USUAL),
    "12 raters": (12, 2.5, USUAL),
    "4 raters": (4, 2.5, USUAL),
    "2 raters": (2, 2.5, USUAL),
    "2 raters, near the end": (2, 4.3, USUAL),
}
"""Raters, mean level, and standard deviations of raters, pairs, a method on a pair, single answers."""
TRUE = 0.4
"""What the first method is better by, before levels are whole numbers."""
SCALE = (0, LEVELS - 1)


def whole(values: np.ndarray) -> np.ndarray:
    """Levels as raters give them."""
    return np.clip(np.rint(values), *SCALE)


def who_and_what(sheets, where) -> np.ndarray:
    """(n, 3): rater, pair, method of each answer of the kind that `where` lists."""
    keys = {item: key for key, item in where.items()}
    numbers: dict[str, int] = {}
    rows = [
        (r, numbers.setdefault(keys[x.item][-2], len(numbers)), int(keys[x.item][0] != "m0"))
        for r, sheet in enumerate(sheets)
        for x in sheet
        if x.item in keys
    ]
    return np.array(rows)


def made_study(levels, duels, mean: float, sizes: tuple[float, ...], seed: int) -> list[Estimate]:
    """The intervals of one study: of a mean, of a difference, of a share of wins."""
    of_rater, of_pair, of_method, of_answer = sizes
    generator = np.random.default_rng(seed)
    draw = [generator.normal(0, s, n) for s, n in ((of_rater, 60), (of_pair, 27))]
    method = generator.normal(0, of_method, (2, 27)) + [[TRUE / 2], [-TRUE / 2]]
    r, p, m = levels.T
    value = whole(mean + draw[0][r] + draw[1][p] + method[m, p] + generator.normal(0, of_answer, len(levels)))
    level = Crossed(r.tolist(), p.tolist(), seed, 600).mean(value, SCALE, m == 0)
    first, second = (dict(zip(zip(r[m == k], p[m == k], strict=True), value[m == k], strict=True)) for k in (0, 1))
    keys = list(first)
    paired = Crossed([k[0] for k in keys], [k[1] for k in keys], seed, 600)
    difference = paired.mean(np.array([first[k] - second[k] for k in keys]), (-SCALE[1], SCALE[1]))
    r, p, _ = duels.T
    better = method[0, p] - method[1, p] + generator.normal(0, of_answer * np.sqrt(2), len(duels))
    wins = Crossed(r.tolist(), p.tolist(), seed, 600).mean((better > 0).astype(float), (0, 1))
    return [level, difference, wins]


def truth(mean: float, sizes: tuple[float, ...]) -> tuple[float, float, float]:
    """Mean level of the first method, difference, share of wins in the whole population, of a million answers."""
    spread = math.hypot(*sizes)
    draws = np.random.default_rng(0).normal(0, spread, 1_000_000)
    one, two = (whole(mean + sign * TRUE / 2 + draws).mean() for sign in (1, -1))
    return one, one - two, 0.5 + 0.5 * math.erf(TRUE / (2 * math.hypot(*sizes[2:])))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--studies", type=int, default=400)
    options = parser.parse_args()
    studies = min(options.studies, 20) if options.quick else options.studies
    print(f"share of {studies} studies whose 95 % interval holds the truth; how wide it is, median")
    print(f"{'':28}level        difference   wins         outside the scale")
    for name, (raters, mean, sizes) in POPULATIONS.items():
        plan = ratings.plan(methods=2, inputs=5, comparisons=8, raters=raters, sheets=raters)
        stuff = make_items(plan, ratings.pictures(methods=2, pairs=27))
        sheets = make_sheets(plan, stuff)
        levels, duels = who_and_what(sheets, stuff.results), who_and_what(sheets, stuff.duels)
        found = [made_study(levels, duels, mean, sizes, seed) for seed in range(studies)]
        ends = np.array([[(x.low, x.high) for x in study] for study in found])
        true = np.array(truth(mean, sizes))
        held = ((ends[..., 0] <= true) & (true <= ends[..., 1])).mean(0)
        wide = np.nanmedian(ends[..., 1] - ends[..., 0], axis=0)
        limits = np.array([SCALE, (-SCALE[1], SCALE[1]), (0, 1)])
        outside = int(((ends < limits[:, :1]) | (ends > limits[:, 1:])).sum())
        cells = "".join(f"{share:.3f} {width:4.2f}   " for share, width in zip(held, wide, strict=True))
        print(f"{name:28}{cells}{outside}", flush=True)


if __name__ == "__main__":
    main()
