"""How often the intervals of a rating study hold the truth: python bench/rating_intervals.py.

400 made studies of each population, with the sheets of a real plan: 60 raters, 27 pairs of inputs, 2 methods, 5 inputs
by levels and 8 comparisons each. Levels are compared with the population's mean, paired differences with the true one,
shares of wins with the share in a study that has every rater compare every pair. Should be 93 to 97 %.
"""

import math
import sys
from pathlib import Path

import numpy as np

from harness import arguments

sys.path.insert(0, str(Path(__file__).parents[1] / "testing"))
import ratings
from qrlora.survey.sheets import make_items, make_sheets
from qrlora.survey.statistics import Crossed

POPULATIONS = {
    "raters, pairs and answers": (0.7, 0.5, 0.4, 0.9),
    "answers alone": (0.0, 0.0, 0.0, 1.0),
    "raters and answers": (0.8, 0.0, 0.0, 0.7),
    "pairs and answers": (0.0, 0.7, 0.3, 0.7),
    "methods on pairs": (0.3, 0.3, 0.8, 0.5),
}
"""Standard deviations of raters, pairs, a method on a pair, single answers."""
TRUE = 0.4
"""What the first method is better by."""


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


def held(levels: np.ndarray, duels: np.ndarray, sizes: tuple[float, ...], studies: int) -> list[float]:
    """Share of the studies whose interval holds the truth: of a mean, of a difference, of a share of wins."""
    of_rater, of_pair, of_method, of_answer = sizes
    truth = 0.5 + 0.5 * math.erf(TRUE / (2 * np.sqrt(of_method**2 + of_answer**2) or 1e-9))
    found = np.zeros(3)
    for seed in range(studies):
        generator = np.random.default_rng(seed)
        draw = [generator.normal(0, s, n) for s, n in ((of_rater, 60), (of_pair, 27))]
        method = generator.normal(0, of_method, (2, 27)) + [[TRUE / 2], [-TRUE / 2]]
        r, p, m = levels.T
        value = 2.5 + draw[0][r] + draw[1][p] + method[m, p] + generator.normal(0, of_answer, len(levels))
        crossed = Crossed(r.tolist(), p.tolist(), seed, 600)
        mean = crossed.mean(value, m == 0)
        first, second = (dict(zip(zip(r[m == k], p[m == k], strict=True), value[m == k], strict=True)) for k in (0, 1))
        keys = list(first)
        paired = Crossed([k[0] for k in keys], [k[1] for k in keys], seed, 600)
        difference = paired.mean(np.array([first[k] - second[k] for k in keys]))
        r, p, _ = duels.T
        better = method[0, p] - method[1, p] + generator.normal(0, of_answer * np.sqrt(2), len(duels))
        wins = Crossed(r.tolist(), p.tolist(), seed, 600).mean((better > 0).astype(float))
        for k, (x, true) in enumerate(((mean, 2.5 + TRUE / 2), (difference, TRUE), (wins, truth))):
            found[k] += x.low <= true <= x.high
    return (found / studies).tolist()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--studies", type=int, default=400)
    options = parser.parse_args()
    studies = min(options.studies, 20) if options.quick else options.studies
    plan = ratings.plan(methods=2, inputs=5, comparisons=8, raters=60, sheets=60)
    stuff = make_items(plan, ratings.pictures(methods=2, pairs=27))
    sheets = make_sheets(plan, stuff)
    levels, duels = who_and_what(sheets, stuff.results), who_and_what(sheets, stuff.duels)
    print(f"share of {studies} studies whose 95 % interval holds the truth\n{'':28}level  difference  wins")
    for name, sizes in POPULATIONS.items():
        mean, difference, wins = held(levels, duels, sizes, studies)
        print(f"{name:28}{mean:.3f}  {difference:.3f}       {wins:.3f}", flush=True)


if __name__ == "__main__":
    main()
