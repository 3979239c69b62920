"""Leading right singular vectors of large weights by block Lanczos, to a measured tolerance.

Letters: a matrix W (m, n), m >= n; its Gram matrix G = W^T W (n, n); count of directions sought; b columns of a block.
"""

# pyright: strict, reportConstantRedefinition=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# Strict but for the letters of matrices, which are no constants, and for torch.linalg, which has no types.

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .devices import has_fast_bfloat16

DIRECTIONS_AT_ONCE = 64
"""Directions that are sought together: a smaller rank is the beginning of a larger one of its batch, bit for bit."""
TOLERANCE = 1e-4
"""The fraction of its squared norm |W z|^2 that a direction found may lack, see `lost_fraction`. All together then lack
less than that of the best possible, and the span, in squared cosines, hardly more (docs/performance.md)."""
SEARCH_MARGIN = 0.5
"""The fraction of TOLERANCE that a search stops at by its own estimate, which does not know of rounding to bfloat16."""
MAX_BLOCKS, MAX_SEARCHES = 80, 3
"""Of a search, and searches before a weight gets all its eigenvectors; few spectra need more than 30 blocks and one."""
MAX_RANDOM_BLOCKS, PROBE_COLUMNS, PROBE_STEPS = 3, 16, 3
"""Random blocks at most that follow the first, so that together they have as many columns as directions are kept:
columns and steps of a short probe for what was missed."""
NOTHING_NEW = 1e-5
"""A random block has found nothing new where it adds no more than this fraction of squared norm."""
REORTHOGONALISE_BELOW = 1e-2
"""Where less than this share of what an image holds beside the known directions is new in one of its columns, or less
than its square of the image, rounding turns the column back towards them by more than 1e-5, and each further block
multiplies that: it is made orthogonal to them a third time."""
ROUNDING_FLOOR = 1e-9
"""Eigenvalues of G below this fraction of the largest are rounding."""


def leading_singular_vectors(matrix: Tensor, scale: Tensor, count: int) -> tuple[Tensor, Tensor, float] | None:
    """The leading right singular vectors of a matrix W (m, n), m >= n. G = W^T W is never formed.

    A search (`block_lanczos_search`) with products in bfloat16, where the device is fast at them, goes on until its
    directions lack no more than SEARCH_MARGIN of TOLERANCE by its own estimate, and random blocks find nothing that it
    missed (`search_missed_directions`). A trial in float32, Rayleigh-Ritz within them, measures what they lack.
    Where that is too much, as of spectra that bfloat16 does not resolve, a search in float32 goes on from the trial.

    Args:    matrix float32.  scale: its largest magnitude, so that squares neither over- nor underflow.
    Returns: Z (n, count), strongest first, orthonormal to rounding; W Z / scale; the fraction of squared norm lost, an
             upper estimate. None where MAX_SEARCHES do not bring that to TOLERANCE.
    """
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
    factor = matrix.bfloat16() if has_fast_bfloat16(matrix.device) else matrix

    def times(factor: Tensor, X: Tensor) -> Tensor:
        X = X.to(factor.dtype)  # a large factor is read a sixth faster along its rows in memory
        return (factor @ X if factor.is_contiguous() else (X.T @ factor.T).T).float() / scale

    def gram(factor: Tensor, X: Tensor) -> Tensor:
        return times(factor.T, times(factor, X))

    X, values = matrix.new_empty(matrix.shape[1], 0), matrix.new_empty(0)
    block = torch.linalg.qr(_random(matrix[0], count // 2, 0)).Q
    for _ in range(MAX_SEARCHES):
        found = block_lanczos_search(partial(gram, factor), X, values, block, count)
        if factor is not matrix and has_clustered_values(
            found[1], count
        ):  # what lies so close, rounding puts in any order
            factor = matrix
            found = block_lanczos_search(partial(gram, factor), X, values, block, count)
        X, values = search_missed_directions(partial(gram, factor), *found, count)
        X, Y, further = torch.linalg.qr(X[:, :count]).Q, X[:, count:], values[count:]
        images = times(matrix, X)
        inside = images.T @ images
        values, turn = eigen_on_cpu(inside.double())
        turn = turn.to(X)
        images, X, shadow = images @ turn, X @ turn, X @ (inside @ turn)
        # rounding hardly shortens a residual: one in bfloat16 suffices to see that it is short
        residual = times(factor.T, images) - shadow
        lost = lost_fraction(values, residual, Y, further)
        if lost > TOLERANCE and factor is not matrix:
            residual = times(matrix.T, images) - shadow
            lost = lost_fraction(values, residual, Y, further)
        if lost <= TOLERANCE:
            return X, images, lost
        block = torch.linalg.qr(residual - X @ (X.T @ residual)).Q  # short, so that rounding is much of it
        factor = matrix
    return None


def search_missed_directions(
    gram: Callable[[Tensor], Tensor], X: Tensor, values: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """What a search has found, and what it could not find: b columns span at most b directions of one singular value,
    so that the others of a value which is repeated more often, exactly or nearly, stay out of the space for ever.

    A random block, orthogonal to X, has no part in that space. Where values found lie so close that some may be hidden
    (`has_clustered_values`), or a short probe meets a value above the last one sought, it begins a search of its own,
    within the sum of both; and the next one, until one adds nothing or there have been MAX_RANDOM_BLOCKS.

    Args:    as `block_lanczos_search`; X (n, k), values (k,), as it returns them.
    Returns: X and values.
    """
    for seed in range(2, 2 + MAX_RANDOM_BLOCKS):
        fresh = _random(X[:, 0], count // 2, seed)
        total = values[:count].sum()
        least = max(float(values[count - 1]), TOLERANCE * float(total) / count)
        if (
            not has_clustered_values(values, count)
            and largest_missed_value(gram, X, values, fresh[:, :PROBE_COLUMNS]) <= least
        ):
            break
        fresh -= X @ (X.T @ fresh)
        block = torch.linalg.qr(fresh - X @ (X.T @ fresh)).Q
        X, values = block_lanczos_search(gram, X, values.double(), block, count)
        if values[:count].sum() - total <= NOTHING_NEW * total:
            break
    return X, values


def has_clustered_values(values: Tensor, count: int) -> bool:
    """Whether as many values as a block has columns, from one of the sought on, lie so close together that mixtures of
    their vectors nearly pass for converged: within some 2 % where others are far. Values next to zero do not count.

    Args:    values (k,): all that a search has kept, strongest first.
    """
    wide = count // 2
    first = values[: len(values) - wide + 1][:count]
    mixed = ritz_value_error(first, first - values[wide - 1 :][:count], float(values[-1])) / first
    return bool(((mixed <= 10 * TOLERANCE) & (first * count > TOLERANCE * values[:count].sum())).any())


def largest_missed_value(gram: Callable[[Tensor], Tensor], X: Tensor, values: Tensor, fresh: Tensor) -> float:
    """The largest Ritz value that a few steps of block Lanczos from a random block find in the complement of X. Values
    twice as large as all others there are seen; closer ones need the steps of a whole search.

    Args:    as `block_lanczos_search`; fresh (n, b).
    """
    known, trace, images = X, float(values[0]) * fresh, []
    block = torch.linalg.qr(fresh - X @ (X.T @ fresh)).Q
    for step in range(1, PROBE_STEPS + 1):
        images.append(gram(block))
        known = torch.cat([known, block], 1)
        if step < PROBE_STEPS:
            block, _ = orthogonal_part(known, images[-1], known.T @ images[-1], trace.roll(step, 0))
    return float(torch.linalg.eigvalsh((known[:, X.shape[1] :].T @ torch.cat(images, 1)).cpu())[-1])


def orthogonal_part(known: Tensor, image: Tensor, inside: Tensor, trace: Tensor) -> tuple[Tensor, Tensor]:
    """In block Lanczos, what an image holds beside the known directions: orthonormal columns, and the triangle of their
    QR.

    An exhausted span leaves nothing but rounding. A random trace of that size keeps the block full, and orthogonal to
    the strongest directions, whose share in it the next product would multiply.

    Args:    known (n, k), orthonormal; image (n, b); inside = known^T image; trace (n, b), of the strongest's size.
    """
    rest = image - known @ inside + 1e-8 * trace
    block, R = torch.linalg.qr(rest - known @ (known.T @ rest))
    longest, before = (x.norm(dim=0).max() for x in (image, rest))
    if R.diagonal().abs().min() <= torch.maximum(
        REORTHOGONALISE_BELOW * before, REORTHOGONALISE_BELOW**2 * longest
    ):  # twice is not enough
        block = torch.linalg.qr(block - known @ (known.T @ block)).Q
    return block, R


def block_lanczos_search(
    gram: Callable[[Tensor], Tensor], X: Tensor, values: Tensor, block: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """A search for the leading eigenvectors of G: Rayleigh-Ritz in the span of X and block, G block, G^2 block ...
    (block Lanczos: Golub and Van Loan, Matrix Computations, 10.3; with full orthogonalisation).

    When the space is full, its `count` + DIRECTIONS_AT_ONCE best directions are kept and it grows anew (thick restart:
    Wu and Simon, SIAM J. Matrix Anal. 22, 2000), so that orthogonalising and the eigenvectors of H stay cheap.

    Args:    gram (n, b) -> G times it.  X (n, k): known directions, perhaps none, of eigenvalues `values`.
             block (n, b), orthonormal, for the next of the space: random, or what is left of G X.
    Returns: Z (n, k), strongest first, and their values (k,), k = count + DIRECTIONS_AT_ONCE. The last stands for those
             beyond.
    """
    (n, wide), start, keep = block.shape, len(values), count + DIRECTIONS_AT_ONCE
    size = max(keep, start) + 5 * wide
    V, H = block.new_empty(n, size), values.new_zeros(size, size)
    V[:, :start], H[:start, :start] = X, torch.diag(values)
    trace, wait, last = _random(block[:, 0], wide, 1), math.inf, math.inf
    strongest = values.to(block).amax() if start else block.new_zeros(())
    found = values
    for spent in range(1, MAX_BLOCKS + 1):
        end = start + wide
        V[:, start:end] = block
        known = V[:, :end]
        image = gram(block)
        inside = known.T @ image
        H[:end, start:end], H[start:end, :end] = inside, inside.T
        strongest = torch.maximum(strongest, inside.abs().max())
        block, R = orthogonal_part(known, image, inside, strongest * trace.roll(spent, 0))
        start, wait = end, wait - 1
        if wait > 0 and end + wide <= size and spent < MAX_BLOCKS:
            continue
        found, turn = eigen_on_cpu(H[:end, :end])
        turn = turn[:, :keep].to(V)
        V[:, :keep] = known @ turn
        found = found[:keep]
        risen = found + ritz_value_error(found, (R @ turn[-wide:]).norm(dim=0), float(found[-1]))
        # what those sought may rise by, and others beyond the last of them
        lost = float((risen[:count] / found[:count] - 1).mean())
        lost += float((risen[count:] / found[count - 1] - 1).clamp(min=0).sum()) / count
        if lost <= SEARCH_MARGIN * TOLERANCE or lost > 0.8 * last:
            break
        last, start = lost, keep
        H.zero_()
        H[:keep, :keep] = torch.diag(found[:keep])
        wait = blocks_needed(float(found[count - 1] / found[-1]), lost)
    return V[:, :keep], found[:keep]


def blocks_needed(ratio: float, lost: float) -> int:
    """How many blocks bring the lost fraction to SEARCH_MARGIN * TOLERANCE, by the growth of Chebyshev polynomials,
    cosh(d acosh(2 x - 1)): x is the weakest sought eigenvalue as a multiple of the cut, half way to those beyond.

    Args:    ratio: the weakest sought eigenvalue over those beyond.
    """
    growth = math.acosh(max(4 * ratio / (ratio + 1) - 1, 1 + ROUNDING_FLOOR))
    return max(1, math.ceil(math.log(lost / (SEARCH_MARGIN * TOLERANCE)) / 2 / growth))  # the fraction is of squares


def ritz_value_error(values: Tensor, residuals: Tensor, further: float) -> Tensor:
    """By how much Ritz values may lie below their eigenvalues: with a residual of length r by at most r, and by at most
    r^2 / gap, the gap being that to the eigenvalues that have no part in the space (Parlett, The Symmetric Eigenvalue
    Problem, 11.7). The last value that the space holds stands for these, which makes it an estimate.

    Args:    values, residuals |G z - theta z|: (k,); further: the last value.
    """
    r = residuals.to(values)
    return r * (r / (values - further).clamp(min=1e-30)).clamp(max=1)


def lost_fraction(values: Tensor, residual: Tensor, Y: Tensor, further: Tensor) -> float:
    """Fraction of its squared norm |W z|^2 that a direction found by Lanczos lacks, the mean over all sought.

    Two directions with values s > t and a product c in G mix until s has risen by the root of
    ((s - t) / 2)^2 + c^2, less (s - t) / 2. So much is lost to each of the directions Y that a search kept beside those
    sought, or to all of them as if they had the largest of their values. The rest of a residual stands for what it
    never met (`ritz_value_error`).

    Args:    values (count,); residual (n, count): G z - theta z.  Y (n, k), further (k,): kept beside them.
    """
    product = Y.T @ residual
    half, c = (values - further[:, None]).clamp(min=0) / 2, product.to(values)
    singly = ((half.square() + c.square()).sqrt() - half).sum(0)
    together = (half[0].square() + c.square().sum(0)).sqrt() - half[0]
    beyond = ritz_value_error(values, (residual - Y @ product).norm(dim=0), float(further[-1]))
    return float(((torch.minimum(singly, together) + beyond) / values).mean())


def eigen_on_cpu(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, strongest first, and vectors, on the CPU: a GPU is slow at small ones. What is below NOTHING of the
    strongest counts as that much."""
    values, vectors = torch.linalg.eigh(symmetric.cpu())
    return values.flip(-1).clamp(min=max(float(values[-1]) * ROUNDING_FLOOR, 1e-30)), vectors.flip(-1)


def _random(like: Tensor, columns: int, seed: int) -> Tensor:
    """(n, columns) for a vector (n,) on its device, drawn on the CPU: equal on every device."""
    return torch.randn(len(like), columns, generator=torch.Generator().manual_seed(seed)).to(like.device)
