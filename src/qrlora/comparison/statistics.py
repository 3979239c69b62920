"""Means over pairs with bootstrap intervals, paired differences, correlation and agreement, of plain numbers.

A pair's images (seeds) are averaged first: pairs were sampled at random, so pairs are resampled.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 10_000
CONFIDENCE_LEVEL = 0.95


class Estimate(NamedTuple):
    """An estimate with its 95 % bootstrap interval; NaN where there is none."""

    value: float
    low: float
    high: float
    count: int
    """Pairs that it is estimated from."""


NO_ESTIMATE = Estimate(math.nan, math.nan, math.nan, 0)


def in_hundredths(x: Estimate) -> str:
    """An estimate as a table's cell, "14 [0, 36]"; without an interval "14", without a value "-"."""
    if math.isnan(x.value):
        return "-"
    return f"{100 * x.value:.0f}" + (f" [{100 * x.low:.0f}, {100 * x.high:.0f}]" if not math.isnan(x.low) else "")


def mean_over_pairs(values: Sequence[float], seed: int = 0) -> Estimate:
    """The mean of one value for each pair, with the percentile bootstrap over pairs (Efron 1979).

    Of a single pair the interval is NaN: nothing is known of how it varies.
    """
    return bootstrap(lambda x: x[..., 0].mean(-1), np.asarray(values, dtype=float)[:, None], seed)


def mean_over_crossed(values: np.ndarray, seed: int = 0) -> Estimate:
    """The mean of a table of contents by style images (by seeds of training), resampling each of them: an adapter is in
    a whole row or column.

    The multiway bootstrap (Owen 2007, "the pigeonhole bootstrap"; Owen and Eckles 2012), whose intervals are too wide
    rather than too narrow; but of two seeds it takes one alone in half of the resamples, and so sees half of their
    variance. Along an axis of one value nothing is resampled; of one value in all the interval is NaN.

    Args: values (contents, style images), or with seeds or frames as a third axis; NaN where there is none, which the
          mean leaves out.
    """
    table = np.asarray(values, dtype=float)
    count, value = int(np.isfinite(table).sum()), float(np.nanmean(table))
    if table.size < 2:
        return Estimate(value, math.nan, math.nan, count)
    generator = np.random.default_rng(seed)
    drawn = [generator.multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(float) for n in table.shape]
    axes = "abcd"[: table.ndim]
    product = ",".join(f"n{axis}" for axis in axes) + f",{axes}->n"
    known, filled = np.isfinite(table).astype(float), np.nan_to_num(table)
    totals, counts = (np.einsum(product, *drawn, x, optimize=True) for x in (filled, known))
    means = totals[counts > 0] / counts[counts > 0]
    low, high = np.quantile(means, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2])
    return Estimate(value, float(low), float(high), count)


def crossed_table(values: Mapping[tuple[Any, ...], float]) -> np.ndarray:
    """The table that `mean_over_crossed` takes: an axis for each entry of the keys, in sorted order; NaN where there is
    no value."""
    names = [sorted(set(axis)) for axis in zip(*values, strict=True)]
    table = np.full([len(axis) for axis in names], np.nan)
    for key, value in values.items():
        table[tuple(axis.index(x) for axis, x in zip(names, key, strict=True))] = value
    return table


def paired_difference(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Estimate:
    """The mean of first - second over pairs that both were measured on, in the same order.

    Raises: ValueError: not equally many.
    """
    if len(first) != len(second):
        raise ValueError(f"a paired difference needs equally many values, got {len(first)} and {len(second)}")
    return mean_over_pairs([a - b for a, b in zip(first, second, strict=True)], seed)


def fraction_of_span(score: Sequence[float], none: Sequence[float], oracle: Sequence[float], seed: int = 0) -> Estimate:
    """(mean score - mean none) / (mean oracle - mean none): a score relative to its lower and upper bound.

    Each resample of the pairs gives its own quotient. NaN where the interval of oracle - none holds 0: there the
    quotient has no meaning.

    Args: one value for each pair, the same pairs in the same order.
    """
    span = paired_difference(oracle, none, seed)
    if not span.low > 0:
        return NO_ESTIMATE._replace(count=len(score))
    rows = np.asarray([score, none, oracle], dtype=float).T

    def quotient(x: np.ndarray) -> np.ndarray:
        s, n, o = (x[..., k].mean(-1) for k in range(3))
        with np.errstate(divide="ignore", invalid="ignore"):
            return (s - n) / (o - n)

    return bootstrap(quotient, rows, seed)


def bootstrap(statistic: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, seed: int = 0) -> Estimate:
    """A statistic of pairs with its percentile bootstrap interval.

    Args: statistic: (..., pairs, values) -> (...).  rows: (pairs, values).
    """
    count = len(rows)
    if count == 0:
        return NO_ESTIMATE
    value = float(statistic(rows))
    if count == 1:
        return Estimate(value, math.nan, math.nan, 1)
    chosen = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    drawn = statistic(rows[chosen])
    low, high = np.quantile(drawn[np.isfinite(drawn)], [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2])
    return Estimate(value, float(low), float(high), count)


def ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks for Spearman's correlation: 1 for the smallest; equal values share the mean of their ranks."""
    x = np.asarray(values, dtype=float)
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return ((2 * last - counts + 1) / 2)[inverse]


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rho, -1..1: Pearson's correlation of the ranks. NaN where one of them is constant.

    Raises: ValueError: not equally many.
    """
    if len(first) != len(second):
        raise ValueError(f"a correlation needs equally many values, got {len(first)} and {len(second)}")
    a, b = ranks(first), ranks(second)
    a, b = a - a.mean() if len(a) else a, b - b.mean() if len(b) else b
    size = math.sqrt(float((a @ a) * (b @ b)))
    return float(a @ b) / size if size else math.nan


def cohens_kappa(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Cohen's kappa (1960) of two series of yes or no: 1 for full agreement, 0 for what chance would give. NaN where
    both say one thing throughout.

    Raises: ValueError: not equally many, or none.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"an agreement needs equally many values, and some, got {len(first)} and {len(second)}")
    a, b = np.mean(first), np.mean(second)
    by_chance = a * b + (1 - a) * (1 - b)
    same = np.mean(np.asarray(first) == np.asarray(second))
    return float((same - by_chance) / (1 - by_chance)) if by_chance < 1 else math.nan


def correlation_over_pairs(groups: Sequence[tuple[Sequence[float], Sequence[float]]], seed: int = 0) -> Estimate:
    """Spearman's rho over all points, with the interval from resampling pairs; a pair comes with all its points.

    Args: groups: for each pair, its predictions and what was measured, one each for every method.
    """

    def rho(chosen: Iterable[int]) -> float:
        points = [groups[k] for k in chosen]
        return rank_correlation([x for p, _ in points for x in p], [y for _, m in points for y in m])

    value = rho(range(len(groups)))
    if len(groups) < 2 or math.isnan(value):
        return NO_ESTIMATE._replace(value=value, count=len(groups))
    generator = np.random.default_rng(seed)
    drawn = np.array([rho(generator.integers(len(groups), size=len(groups)).tolist()) for _ in range(RESAMPLES // 10)])
    low, high = np.quantile(drawn[np.isfinite(drawn)], [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2])
    return Estimate(value, float(low), float(high), len(groups))
