"""Estimates of studies against known populations and textbook formulas."""

import math

import numpy as np
import pytest

from qrlora.comparison.statistics import (
    correlation_over_pairs,
    fraction_of_span,
    in_hundredths,
    mean_over_crossed,
    mean_over_pairs,
    paired_difference,
    rank_correlation,
    ranks,
)


def test_a_95_percent_interval_holds_the_true_mean_about_95_times_in_100():
    """27 pairs from a skewed population of mean 1; the percentile bootstrap is a little short on so few."""
    drawn = np.random.default_rng(0).gamma(4.0, 0.25, size=(300, 27))
    held = [estimate.low <= 1 <= estimate.high for estimate in map(mean_over_pairs, drawn)]
    assert 0.89 <= sum(held) / len(held) <= 0.97


def test_a_cell_has_no_interval_where_nothing_is_known_of_it():
    assert in_hundredths(mean_over_pairs([0.0, 1.0])) == "50 [0, 100]"
    assert in_hundredths(mean_over_pairs([0.5])) == "50" and in_hundredths(mean_over_pairs([])) == "-"


def test_the_mean_is_the_mean_and_one_pair_has_no_interval():
    assert mean_over_pairs([0.0, 1.0, 0.5]).value == 0.5 and mean_over_pairs([0.0, 1.0, 0.5]).count == 3
    assert mean_over_pairs([2.0]).value == 2.0 and math.isnan(mean_over_pairs([2.0]).low)
    assert math.isnan(mean_over_pairs([]).value) and mean_over_pairs([]).count == 0
    assert mean_over_pairs([0.25] * 5)[:3] == (0.25, 0.25, 0.25)


def test_an_interval_over_contents_and_styles_knows_that_adapters_are_shared():
    """Cells of one column are alike: 36 cells tell as much as their 6 columns, which an interval over cells forgets."""
    generator = np.random.default_rng(2)
    tables = generator.normal(size=(300, 1, 6)) + 0.5 * generator.normal(size=(300, 6, 1)) + np.zeros((300, 6, 6))
    held = [estimate.low <= 0 <= estimate.high for estimate in map(mean_over_crossed, tables)]
    forgetful = [estimate.low <= 0 <= estimate.high for estimate in (mean_over_pairs(x.ravel()) for x in tables)]
    assert sum(held) / 300 >= 0.88 and sum(forgetful) / 300 < 0.75


def test_a_table_with_holes_has_the_mean_of_what_is_there_and_one_cell_no_interval():
    table = np.array([[0.0, 1.0], [math.nan, 0.5]])
    assert mean_over_crossed(table).value == 0.5 and mean_over_crossed(table).count == 3
    assert mean_over_crossed(np.full((3, 4), 0.25))[:3] == (0.25, 0.25, 0.25)
    assert math.isnan(mean_over_crossed(np.array([[2.0]])).low)


def test_a_paired_difference_does_not_see_what_the_pairs_share():
    """Pairs differ by 10, methods by 0.1: alone the means tell nothing, paired they tell all."""
    generator = np.random.default_rng(1)
    of_pair = generator.normal(0, 10, 27)
    first, second = of_pair + 0.1 + generator.normal(0, 0.02, 27), of_pair
    assert mean_over_pairs(first).low < mean_over_pairs(second).high
    apart = paired_difference(first, second)
    assert 0 < apart.low < 0.1 < apart.high < 0.12
    with pytest.raises(ValueError, match="27 and 26"):
        paired_difference(first, second[:-1])


def test_the_ends_of_the_scale_stand_at_0_and_1_and_half_way_at_a_half():
    none, oracle = [0.1, 0.0, 0.2, 0.1], [0.9, 1.0, 0.8, 0.9]
    middle = [(a + b) / 2 for a, b in zip(none, oracle, strict=True)]
    assert fraction_of_span(none, none, oracle)[:3] == (0, 0, 0)
    assert fraction_of_span(oracle, none, oracle)[:3] == (1, 1, 1)
    assert fraction_of_span(middle, none, oracle)[:3] == pytest.approx((0.5, 0.5, 0.5))


def test_a_share_of_a_span_that_may_be_empty_is_no_number():
    assert math.isnan(fraction_of_span([0.5, 0.5], [0.4, 0.6], [0.6, 0.4]).value)


def test_ranks_share_ties_and_rho_is_the_textbooks():
    assert ranks([30, 10, 20, 20]).tolist() == [4, 1, 2.5, 2.5]
    x, y = np.random.default_rng(2).permutation(20), np.random.default_rng(3).permutation(20)
    textbook = 1 - 6 * float(((x - y) ** 2).sum()) / (20 * (400 - 1))
    assert rank_correlation(x, y) == pytest.approx(textbook)
    assert rank_correlation(x, np.exp(x)) == pytest.approx(1) and rank_correlation(x, -x) == pytest.approx(-1)
    tied = [0.0, 0.0, 1.0, 1.0, 2.0]
    wanted = np.corrcoef(ranks(tied), ranks(x[:5]))[0, 1]
    assert rank_correlation(tied, x[:5]) == pytest.approx(float(wanted))
    assert math.isnan(rank_correlation([1, 1, 1], [1, 2, 3]))


def test_a_correlation_resamples_pairs_with_all_their_points():
    """Two methods that give each pair the same points are no more evidence than one."""
    generator = np.random.default_rng(4)
    points = [
        (float(x), float(x + e)) for x, e in zip(generator.normal(size=20), generator.normal(size=20), strict=True)
    ]
    once = correlation_over_pairs([([x], [y]) for x, y in points])
    twice = correlation_over_pairs([([x, x], [y, y]) for x, y in points])
    assert once.low < once.value < once.high and once.count == twice.count == 20
    assert twice.value == pytest.approx(once.value) and twice[1:3] == pytest.approx(once[1:3], abs=0.02)
    assert math.isnan(correlation_over_pairs([([0.0], [1.0]), ([0.0], [2.0])]).value)
