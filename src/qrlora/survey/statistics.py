"""Estimates from ratings of many people on many pairs of inputs. Plain numbers in, plain numbers out. [scipy]

People and pairs were both drawn at random, so both are resampled (the pigeonhole bootstrap: Owen, "The pigeonhole
bootstrap", Annals of Applied Statistics 2007), and single answers never. Letters: n answers, R raters, P pairs of
inputs, M methods, b resamples.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

RESAMPLES = 2000
LEVEL = 0.95
FINITE = 0.95
"""Share of the resamples that must have an estimate for there to be an interval."""

ROUNDING = 1e-9
"""A variance of so little of the whole is that of rounding."""


class Estimate(NamedTuple):
    """A figure with its 95 % interval; NaN where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    """Two-sided, for "it is `null`"."""
    answers: int = 0
    raters: int = 0
    pairs: int = 0


class Crossed:
    """Who gave each answer, on which pair of inputs, and how often each comes in every resample."""

    def __init__(self, raters: Sequence[object], pairs: Sequence[object], seed: int = 0, resamples: int = RESAMPLES):
        """Raises: ValueError: not equally many."""
        if len(raters) != len(pairs):
            raise ValueError(f"an answer has a rater and a pair: got {len(raters)} raters and {len(pairs)} pairs")
        generator = np.random.default_rng(seed)
        self.raters, self.pairs = _numbered(raters), _numbered(pairs)
        self.sizes = [int(x.max(initial=-1)) + 1 for x in (self.raters, self.pairs)]
        drawn = [
            generator.multinomial(n, np.full(n, 1 / n), size=resamples) if n else np.zeros((resamples, 0))
            for n in self.sizes
        ]
        self.of_raters, self.of_pairs = (x.astype(float) for x in drawn)

    def spread(self, values: np.ndarray, chosen: np.ndarray) -> list[np.ndarray]:
        """Bootstrap sums of answers' values: raters resampled alone, pairs alone, and both; each (b, k).

        Args: values (n, k).  chosen: (n,) of bool, which answers.
        """
        r, p = self.of_raters, self.of_pairs
        cells = np.zeros((*self.sizes, values.shape[1]))  # (R, P, k): sums over a rater's answers on a pair
        np.add.at(cells, (self.raters[chosen], self.pairs[chosen]), values[chosen])
        halfway = np.tensordot(r, cells, axes=(1, 0))  # (b, P, k)
        return [halfway.sum(1), p @ cells.sum(0), np.einsum("bpk,bp->bk", halfway, p)]

    def estimates(
        self,
        values: np.ndarray,
        statistic: Callable[[np.ndarray], np.ndarray],
        chosen: np.ndarray | None = None,
        null: float = 0.0,
        scale: tuple[float, float] | None = None,
    ) -> list[Estimate]:
        """Statistics of the answers' sums, each with its interval.

        With A, B and E the shares of raters, of pairs and of single answers in the variance, resampling raters finds
        A + E, resampling pairs B + E, resampling both A + B + 3 E (Owen 2007, theorem 2), where of n groups a resample
        finds (n - 1) / n. The variance is A + B + E. The interval is Student's for as many groups as there are; of a
        statistic that has a scale, for its logit (the delta method), so that no end can leave the scale.

        Args: values (n, k).  statistic: (..., k) -> (..., m), m statistics.  null: the value that `p` is about.
              scale: (least, most) that the statistics can be; None: they have no ends.
        """
        chosen = np.ones(len(values), dtype=bool) if chosen is None else chosen
        found = statistic(values[chosen].sum(0))
        counts = [int(chosen.sum()), *(len(np.unique(x[chosen])) for x in (self.raters, self.pairs))]
        if min(counts[1:]) < 2:
            return [Estimate(float(value), math.nan, math.nan, math.nan, *counts) for value in found]
        kinds = [statistic(x) for x in self.spread(values, chosen)]
        return [
            _estimate_with_interval(float(value), [x[..., m] for x in kinds], counts, null, scale)
            for m, value in enumerate(found)
        ]

    def mean(
        self, values: np.ndarray, scale: tuple[float, float], chosen: np.ndarray | None = None, null: float = 0.0
    ) -> Estimate:
        """The mean of one value for each answer, on the scale of those; NaN of none."""
        return self.estimates(np.stack([values, np.ones(len(values))], 1), quotient, chosen, null, scale)[0]


def _estimate_with_interval(
    value: float, kinds: Sequence[np.ndarray], counts: Sequence[int], null: float, scale: tuple[float, float] | None
) -> Estimate:
    """See `Crossed.estimates`. Args: kinds: draws of resampled raters, of pairs, of both."""
    found = Estimate(value, math.nan, math.nan, math.nan, *counts)
    if not math.isfinite(value) or any(np.isfinite(x).mean() < FINITE for x in kinds):
        return found
    of_raters, of_pairs, both = (float(x[np.isfinite(x)].var()) for x in kinds)
    if not both:  # all answers are alike: nothing was seen that could say how much others would differ
        return found
    R, P = counts[1:]
    share_of_single = 1 - 1 / R - 1 / P  # 0 of two raters on two pairs, which cannot tell it from the others
    single = max(both - of_raters - of_pairs, 0) / share_of_single if share_of_single else 0
    of_raters, of_pairs = of_raters * R / (R - 1), of_pairs * P / (P - 1)
    # a difference of guesses may be none; both are none of raters and pairs that are alike in the mean alone
    guesses = (of_raters + of_pairs - single, max(of_raters, of_pairs), both)
    error = math.sqrt(next(variance for variance in guesses if variance > ROUNDING * both))
    freedom = min(R, P) - 1
    half = special.stdtrit(freedom, (1 + LEVEL) / 2)
    ends = np.array([-half, half])
    if scale is None:
        low, high = value + error * ends
        away = abs(value - null)
    else:
        least, width = scale[0], scale[1] - scale[0]
        share = (value - least) / width
        error /= width * share * (1 - share)  # of the logit, whose slope is 1 / (share (1 - share))
        low, high = least + width * special.expit(special.logit(share) + error * ends)
        away = abs(special.logit(share) - special.logit((null - least) / width))
    return found._replace(low=float(low), high=float(high), p=float(2 * special.stdtr(freedom, -away / error)))


def quotient(sums: np.ndarray) -> np.ndarray:
    """sums (..., 2) -> (..., 1): the first over the second; NaN where that is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums[..., :1] / sums[..., 1:]


def holm(ps: Sequence[float]) -> list[float]:
    """p-values adjusted for there being several tests (Holm 1979); NaN stays, and does not count."""
    order = sorted((k for k, p in enumerate(ps) if not math.isnan(p)), key=lambda k: ps[k])
    adjusted, largest = list(ps), 0.0
    for rank, k in enumerate(order):
        largest = max(largest, (len(order) - rank) * ps[k])
        adjusted[k] = min(1.0, largest)
    return adjusted


def bradley_terry_davidson(counts: np.ndarray, pairs: Sequence[tuple[int, int]], methods: int) -> np.ndarray:
    """Strengths of methods and how easily they tie, by maximum likelihood (Davidson 1970).

    P(i beats j) : P(j beats i) : P(tie) = exp(s_i) : exp(s_j) : exp(t + (s_i + s_j) / 2). Newton's method; the
    likelihood is concave in s and t. Without ties t is minus infinity, and the rest is Bradley and Terry's model.

    Args:    counts (..., K, 3): for each pair of methods, how often the first won, the second won, they tied.
             pairs: K of (i, j).
    Returns: (..., M + 1): log-odds s with mean 0, and t; NaN where there is no finite maximum, as where a method won
             every time or was never compared.
    """
    shape, K = counts.shape[:-2], len(pairs)
    n = counts.reshape(-1, K, 3).astype(float)
    design = np.zeros((K, 3, methods + 1))  # what each outcome's log-weight is, in s and t
    for k, (i, j) in enumerate(pairs):
        design[k, 0, i] = design[k, 1, j] = 1
        design[k, 2, [i, j]], design[k, 2, methods] = 0.5, 1
    tied = n[:, :, 2].sum(1) > 0
    x = np.zeros((len(n), methods + 1))
    x[~tied, methods] = -np.inf
    free = np.ones((len(n), methods + 1))
    free[~tied, methods] = 0
    fixed = np.eye(methods + 1) * (1 - free[:, None, :]) + np.pad(np.ones((methods, methods)), (0, 1))  # sum of s: 0
    gradient = np.full_like(x, np.inf)
    for _ in range(30):
        linear = np.einsum("bm,kom->bko", np.where(np.isfinite(x), x, 0), design)
        linear[~tied, :, 2] = -np.inf
        chance = np.exp(linear - linear.max(2, keepdims=True))
        chance /= chance.sum(2, keepdims=True)
        total = n.sum(2, keepdims=True)
        gradient = np.einsum("bko,kom->bm", n - total * chance, design) * free
        mean = np.einsum("bko,kom->bkm", chance, design)
        moved = design[None] - mean[:, :, None]
        curvature = np.einsum("bko,bkom,bkol->bml", total * chance, moved, moved) * free[:, :, None] * free[:, None]
        size = np.linalg.cond(curvature + fixed)
        solvable = size < 1e12
        step = np.zeros_like(x)
        step[solvable] = np.linalg.solve((curvature + fixed)[solvable], gradient[solvable][..., None])[..., 0]
        step *= np.minimum(1, 2 / np.maximum(np.abs(step).max(1, keepdims=True), 1e-300))
        x = x + step
        if np.abs(step).max(initial=0) < 1e-10:
            break
    found = solvable & (np.abs(gradient).max(1) < 1e-6 * (1 + n.sum((1, 2)))) & (np.abs(x[:, :methods]).max(1) < 15)
    x[~found] = np.nan
    return x.reshape(*shape, methods + 1)


def alpha(units: np.ndarray, levels: int, ordinal: bool) -> float:
    """Krippendorff's alpha: 1 where all agree, 0 where they agree as by chance; NaN where nothing varies.

    Krippendorff, "Computing Krippendorff's alpha-reliability" (2011), with his ordinal or nominal difference.

    Args: units (R, U): each rater's level 0..levels-1 of each unit; -1: none.
    """
    once = np.ones((1, len(units))), np.ones((1, units.shape[1]))
    return float(_krippendorff_alphas(_one_hot(units, levels), *once, ordinal)[0])


def alpha_estimate(
    units: np.ndarray, pair_of_unit: Sequence[object], levels: int, ordinal: bool, seed: int = 0
) -> Estimate:
    """Alpha with the percentiles of resampled raters and pairs; a rater who comes twice is not compared with himself.

    Args: units (R, U), as for `alpha`.  pair_of_unit: the pair of inputs of each unit.
    """
    value = alpha(units, levels, ordinal)
    answered = units >= 0
    pairs = _numbered(pair_of_unit)
    found = Estimate(value, answers=int(answered.sum()), raters=int(answered.any(1).sum()), pairs=len(np.unique(pairs)))
    if math.isnan(value) or found.raters < 2 or found.pairs < 2:
        return found
    crossed = Crossed(range(len(units)), [0] * len(units), seed, RESAMPLES // 4)
    of_pairs = Crossed(pairs.tolist(), [0] * len(pairs), seed + 1, RESAMPLES // 4).of_raters
    drawn = _krippendorff_alphas(_one_hot(units, levels), crossed.of_raters, of_pairs[:, pairs], ordinal)
    if np.isfinite(drawn).mean() < FINITE:
        return found
    low, high = np.quantile(drawn[np.isfinite(drawn)], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return found._replace(low=float(low), high=float(high))


def _krippendorff_alphas(one_hot: np.ndarray, of_raters: np.ndarray, of_units: np.ndarray, ordinal: bool) -> np.ndarray:
    """Krippendorff's alpha for every weighting. one_hot (R, U, K), of_raters (b, R), of_units (b, U) -> (b,)"""
    R, U, K = one_hot.shape
    flat = one_hot.reshape(R, U * K)
    held = (of_raters @ flat).reshape(len(of_raters), U, K)
    oneself = (of_raters**2 @ flat).reshape(len(of_raters), U, K)  # each rater beside himself, which is no agreement
    count = held.sum(2)
    paired = count**2 - oneself.sum(2) > 1e-9
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = np.where(paired, of_units / (count - oneself.sum(2) / count), 0)
    observed = np.einsum("buk,bul,bu->bkl", held, held, weight)
    observed -= np.einsum("buk,bu->bk", oneself, weight)[:, :, None] * np.eye(K)
    totals = observed.sum(2)
    if ordinal:
        below = np.cumsum(totals, 1) - totals / 2
        difference = (below[:, :, None] - below[:, None]) ** 2
    else:
        difference = np.broadcast_to(1 - np.eye(K), observed.shape)
    n = totals.sum(1)
    by_chance = np.einsum("bk,bl,bkl->b", totals, totals, difference)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(by_chance > 0, 1 - (n - 1) * (observed * difference).sum((1, 2)) / by_chance, np.nan)


def _one_hot(units: np.ndarray, levels: int) -> np.ndarray:
    return (units[:, :, None] == np.arange(levels)).astype(float)


def _numbered(values: Sequence[object]) -> np.ndarray:
    """0, 1, 2 ... for equal values, in the order in which they come."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=int)
