"""The statistics of rating studies against stock libraries, textbooks, and populations that are known."""

import math
from itertools import combinations

import choix
import evalica
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from qrlora.survey.statistics import Crossed, alpha, alpha_estimate, bradley_terry_davidson, holm, quotient

POPULATIONS = {"raters and pairs": (0.7, 0.5, 0.9), "answers alone": (0.0, 0.0, 1.0), "pairs alone": (0.0, 0.7, 0.7)}
"""Standard deviations of raters, pairs, answers."""


def ratings(sizes, seed):
    """60 raters on 5 of 27 pairs each, in turn; mean 2.5."""
    generator = np.random.default_rng(seed)
    raters = np.repeat(np.arange(60), 5)
    pairs = np.concatenate([generator.permutation(27) for _ in range(12)])[: len(raters)]
    of_rater, of_pair, of_answer = (
        generator.normal(0, s, n) for s, n in zip(sizes, (60, 27, len(raters)), strict=True)
    )
    return raters.tolist(), pairs.tolist(), 2.5 + of_rater[raters] + of_pair[pairs] + of_answer


@pytest.mark.parametrize("sizes", POPULATIONS.values(), ids=POPULATIONS)
def test_intervals_hold_the_true_mean_about_95_times_in_100(sizes):
    """The whole check, 400 studies of each kind, is bench/rating_intervals.py."""
    held = 0
    for seed in range(100):
        raters, pairs, values = ratings(sizes, seed)
        found = Crossed(raters, pairs, seed, resamples=300).mean(values, (0, 5))
        held += found.low <= 2.5 <= found.high
    assert 90 <= held <= 99


def test_resampling_single_answers_would_have_been_far_too_sure():
    """Why raters and pairs are resampled: half of the naive intervals miss the truth."""
    held = 0
    for seed in range(100):
        values = ratings((0.7, 0.5, 0.3), seed)[2]
        wide = 1.96 * values.std() / math.sqrt(len(values))
        held += abs(values.mean() - 2.5) <= wide
    assert held < 75


def test_an_estimate_tells_what_it_rests_on_and_one_pair_has_no_interval():
    crossed = Crossed([1, 1, 2, 2], ["a", "b", "a", "b"])
    found = crossed.mean(np.array([1.0, 2.0, 3.0, 4.0]), (0, 5))
    assert found.value == 2.5 and (found.answers, found.raters, found.pairs) == (4, 2, 2)
    one = crossed.mean(np.array([1.0, 2.0, 3.0, 4.0]), (0, 5), np.array([True, False, True, False]))
    assert one.value == 2.0 and math.isnan(one.low) and one.pairs == 1
    alike = crossed.mean(np.ones(4), (0, 5))
    assert alike.value == 1 and math.isnan(alike.low) and math.isnan(alike.p), "four answers do not make it certain"
    assert math.isnan(crossed.mean(np.ones(4), (0, 5), np.zeros(4, dtype=bool)).value)
    with pytest.raises(ValueError, match="2 raters and 1 pairs"):
        Crossed([1, 2], ["a"])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(2, 4), st.integers(2, 4), st.data())
def test_no_interval_leaves_the_scale_however_few_the_raters_and_however_near_its_end(raters, pairs, data):
    """With two raters it is nearly the whole of the scale: that is what two raters can say."""
    n = raters * pairs
    values = np.array(data.draw(st.lists(st.integers(0, 5), min_size=n, max_size=n)), dtype=float)
    who, what = np.divmod(np.arange(n), pairs)
    for scale, x in (((0, 5), values), ((-5, 5), 2 * values - 5), ((0, 1), values / 5)):
        found = Crossed(who.tolist(), what.tolist(), 0, 100).mean(x, scale)
        assert math.isnan(found.low) or scale[0] <= found.low < found.value < found.high <= scale[1]
        if not math.isnan(found.low) and np.ptp(values.reshape(raters, pairs).mean(1)) >= 1 and raters == 2:
            assert found.high - found.low > 0.3 * (scale[1] - scale[0])


@pytest.mark.parametrize("values", [[0, 1, 1, 0], [0.2, 0.6, 0.6, 0.2], [0, 1, 0.5, 0.5, 0, 1, 1, 0.5, 0]])
@pytest.mark.parametrize("scale", [(0, 1), None])
def test_raters_and_pairs_that_are_alike_in_the_mean_alone_make_nothing_certain(values, scale):
    """Each rater's mean and each pair's is the same, yet no two answers to a pair are."""
    n = math.isqrt(len(values))
    who, what = np.divmod(np.arange(n * n), n)
    sums = np.stack([np.array(values, dtype=float), np.ones(n * n)], 1)
    crossed = Crossed(who.tolist(), what.tolist(), 0, 200)
    (found,) = crossed.estimates(sums, quotient, None, 0.4, scale)
    assert found.low < found.value - 0.1 and found.value + 0.1 < found.high and found.p > 0.05


def test_an_interval_is_students_of_the_logit_and_p_below_5_percent_where_it_leaves_the_null_out():
    """Raters who answer once each, on pairs of their own: the plain case of textbooks."""
    values = np.random.default_rng(3).integers(0, 6, 40).astype(float)
    found = Crossed(range(40), range(40), 0, 4000).mean(values, (0, 5))
    share, error = values.mean() / 5, values.std(ddof=1) / 5 / math.sqrt(40)
    logit = math.log(share / (1 - share)) + np.array(stats.t(39).interval(0.95)) * error / (share * (1 - share))
    assert (found.low, found.high) == pytest.approx(5 / (1 + np.exp(-logit)), abs=0.06)
    for null in np.linspace(0.5, 4.5, 81):
        p = Crossed(range(40), range(40), 0, 4000).mean(values, (0, 5), null=null).p if abs(null - 2.5) < 1 else None
        assert p is None or (p < 0.05) == (not found.low < null < found.high)


def test_holm_is_the_textbooks():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, math.nan, 0.9])[0] == 1.0 and math.isnan(holm([0.6, math.nan, 0.9])[1])


def duels(methods, count, ties, seed):
    """Counts (K, 3) of comparisons between methods of known strengths."""
    generator = np.random.default_rng(seed)
    pairs = list(combinations(range(methods), 2))
    strength = generator.normal(0, 0.8, methods)
    counts = np.zeros((len(pairs), 3))
    for k, (i, j) in enumerate(pairs):
        weights = np.exp([strength[i], strength[j], (strength[i] + strength[j]) / 2 + math.log(ties or 1e-300)])
        counts[k] = generator.multinomial(count, weights / weights.sum())
    return pairs, counts


def test_without_ties_strengths_are_choixs():
    pairs, counts = duels(5, 40, 0, 1)
    wins = [(i, j) for (i, j), n in zip(pairs, counts, strict=True) for _ in range(int(n[0]))]
    wins += [(j, i) for (i, j), n in zip(pairs, counts, strict=True) for _ in range(int(n[1]))]
    theirs = choix.opt_pairwise(5, wins)
    ours = bradley_terry_davidson(counts, pairs, 5)
    assert ours[:5] == pytest.approx(theirs - theirs.mean(), abs=1e-4) and ours[5] == -math.inf


def test_with_ties_strengths_are_those_of_direct_maximisation():
    pairs, counts = duels(4, 50, 0.7, 2)

    def minus_likelihood(x):
        total = 0.0
        for (i, j), n in zip(pairs, counts, strict=True):
            logs = np.array([x[i], x[j], x[4] + (x[i] + x[j]) / 2])
            total -= float(n @ (logs - np.logaddexp.reduce(logs)))
        return total + float(np.sum(x[:4])) ** 2

    best = optimize.minimize(minus_likelihood, np.zeros(5), tol=1e-12)
    assert bradley_terry_davidson(counts, pairs, 4) == pytest.approx(best.x, abs=1e-4)


def test_a_method_that_always_wins_has_no_finite_strength_and_many_are_fitted_at_once():
    pairs, counts = duels(3, 30, 0.5, 3)
    always = counts.copy()
    always[:2] = (30, 0, 0)  # the first over both others
    alone = np.zeros((3, 3))
    alone[0] = (3, 2, 1)  # the third was never compared
    found = bradley_terry_davidson(np.stack([counts, always, alone]), pairs, 3)
    assert np.isfinite(found[0]).all() and np.isnan(found[1:]).all()
    assert found[0] == pytest.approx(bradley_terry_davidson(counts, pairs, 3))


@pytest.mark.parametrize(("distance", "ordinal"), [("ordinal", True), ("nominal", False)])
def test_alpha_is_evalicas(distance, ordinal):
    generator = np.random.default_rng(4)
    truth = generator.integers(0, 6, 30)
    units = np.clip(truth + generator.integers(-1, 2, (7, 30)), 0, 5)
    units[generator.random(units.shape) < 0.4] = -1
    theirs = evalica.alpha(pd.DataFrame(np.where(units < 0, np.nan, units)), distance=distance)
    assert alpha(units, 6, ordinal) == pytest.approx(theirs.alpha, abs=1e-9)


def test_alpha_is_krippendorffs_own_example():
    """Computing Krippendorff's alpha-reliability (2011), part C: four observers, twelve units."""
    rows = ("123321412___", "1233224125_3", "_3332342251_", "12332441251_")
    units = np.array([[int(x) - 1 if x != "_" else -1 for x in row] for row in rows])
    assert alpha(units, 5, ordinal=False) == pytest.approx(0.743, abs=5e-4)
    assert alpha(units, 5, ordinal=True) == pytest.approx(0.815, abs=5e-4)


def test_agreement_is_1_where_all_agree_0_by_chance_and_a_rater_drawn_twice_is_no_agreement():
    same = np.tile(np.arange(30) % 5, (6, 1))
    assert alpha(same, 6, True) == 1
    chance = np.random.default_rng(5).integers(0, 6, (6, 200))
    found = alpha_estimate(chance, (np.arange(200) // 4).tolist(), 6, True)
    assert found.low < 0 < found.high < 0.1 and abs(found.value) < 0.05
    assert math.isnan(alpha(np.full((3, 4), 2), 6, True))
