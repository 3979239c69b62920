"""Leading right singular vectors of large weights, by block Lanczos, until what they lack is measured to be little.

Letters: a matrix W (m, n), m >= n; its Gram matrix G = W^T W (n, n); count of directions sought; b columns of a block.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .devices import has_fast_bfloat16

LOT = 64
"""So many directions are sought at once: a smaller rank is the beginning of a larger one of its lot, bit for bit."""
TOLERANCE = 2e-4
"""The share of its energy that a direction found may lack, see `energy_lost`. All together then lack less than that of
the best possible, and the span, in squared cosines, hardly more (docs/performance.md)."""
ENOUGH = 0.25
"""The share of TOLERANCE that a search goes on to by its own account, which does not know of rounding to bfloat16."""
MOST_BLOCKS, ATTEMPTS = 80, 3
"""Of a search, and searches before a weight gets all its eigenvectors; few spectra need more than 30 blocks and one."""
NOTHING = 1e-9
"""Energies below this share of the strongest are rounding."""


def lanczos(matrix: Tensor, scale: Tensor, count: int) -> tuple[Tensor, Tensor, float] | None:
    """The leading right singular vectors of a matrix W (m, n), m >= n. G = W^T W is never formed.

    A search (`krylov`) with products in bfloat16, where the device is fast at them, goes on until its directions lack
    no more than is ENOUGH by its own account. A trial in float32, Rayleigh-Ritz within them, measures what they lack.
    Where that is too much, as of spectra that bfloat16 does not resolve, a search in float32 goes on from the trial.

    Args:    matrix float32.  scale: its largest magnitude, so that squares neither over- nor underflow.
    Returns: Z (n, count), strongest first, orthonormal to rounding; W Z / scale; the energy lost.
             None where ATTEMPTS do not bring that to TOLERANCE.
    """
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
    quick = matrix.bfloat16() if has_fast_bfloat16(matrix.device) else matrix

    def times(factor: Tensor, X: Tensor) -> Tensor:
        X = X.to(factor.dtype)  # a large factor is read a sixth faster along its rows in memory
        return (factor @ X if factor.is_contiguous() else (X.T @ factor.T).T).float() / scale

    def gram(factor: Tensor, X: Tensor) -> Tensor:
        return times(factor.T, times(factor, X))

    X, values = matrix.new_empty(matrix.shape[1], 0), matrix.new_empty(0)
    block = torch.linalg.qr(_random(matrix[0], count // 2, 0)).Q
    for attempt in range(ATTEMPTS):
        factor = matrix if attempt else quick
        X, further = krylov(partial(gram, factor), X, values, block, count)
        X = torch.linalg.qr(X).Q
        images = times(matrix, X)
        inside = images.T @ images
        values, turn = eigen(inside.double())
        turn = turn.to(X)
        images, X, shadow = images @ turn, X @ turn, X @ (inside @ turn)
        for each in dict.fromkeys((factor, matrix)):
            # rounding only lengthens a residual: one in bfloat16 suffices to see that it is short
            residual = times(each.T, images) - shadow
            lost = energy_lost(values, residual.norm(dim=0), further)
            if lost <= TOLERANCE:
                return X, images, lost
        block = torch.linalg.qr(residual - X @ (X.T @ residual)).Q  # short, so that rounding is much of it
    return None


def krylov(
    gram: Callable[[Tensor], Tensor], X: Tensor, values: Tensor, block: Tensor, count: int
) -> tuple[Tensor, float]:
    """A search for the leading eigenvectors of G: Rayleigh-Ritz in the span of X and block, G block, G^2 block ...
    (block Lanczos: Golub and Van Loan, Matrix Computations, 10.3; with full orthogonalisation).

    When the space is full, its LOT more than `count` best directions are kept and it grows anew (thick restart: Wu and
    Simon, SIAM J. Matrix Anal. 22, 2000), so that orthogonalising and the eigenvectors of H stay cheap.

    Args:    gram (n, b) -> G times it.  X (n, k): known directions, perhaps none, of eigenvalues `values`.
             block (n, b), orthonormal, for the next of the space: random, or what is left of G X.
    Returns: Z (n, count), strongest first; the last eigenvalue kept, which stands for those beyond.
    """
    (n, wide), begin, keep = block.shape, len(values), count + LOT
    size = max(keep, begin) + 5 * wide
    V, H = block.new_empty(n, size), values.new_zeros(size, size)
    V[:, :begin], H[:begin, :begin] = X, torch.diag(values)
    trace, wait, last = _random(block[:, 0], wide, 1), math.inf, math.inf
    for spent in range(1, MOST_BLOCKS + 1):
        end = begin + wide
        V[:, begin:end] = block
        known = V[:, :end]
        image = gram(block)
        inside = known.T @ image
        H[:end, begin:end], H[begin:end, :end] = inside, inside.T
        # An exhausted span leaves nothing but rounding; a random trace of that size keeps the next block full.
        rest = image - known @ inside + 1e-8 * inside.abs().max() * trace.roll(spent, 0)
        block, R = torch.linalg.qr(rest - known @ (known.T @ rest))
        begin, wait = end, wait - 1
        if wait > 0 and end + wide <= size and spent < MOST_BLOCKS:
            continue
        found, turn = eigen(H[:end, :end])
        turn = turn[:, :keep].to(V)
        V[:, :keep] = known @ turn
        further = float(found[keep - 1])
        lost = energy_lost(found[:count], (R @ turn[-wide:, :count]).norm(dim=0), further)
        if lost <= ENOUGH * TOLERANCE or lost > 0.8 * last:
            break
        last, begin = lost, keep
        H.zero_()
        H[:keep, :keep] = torch.diag(found[:keep])
        wait = blocks_needed(float(found[count - 1]) / further, lost)
    return V[:, :count], further


def blocks_needed(ratio: float, lost: float) -> int:
    """How many blocks bring the energy lost to what is ENOUGH, by the growth of Chebyshev polynomials, cosh(d
    acosh(2 x - 1)): x is the weakest sought eigenvalue as a multiple of the cut, half way to those beyond.

    Args:    ratio: the weakest sought eigenvalue over those beyond.
    """
    growth = math.acosh(max(4 * ratio / (ratio + 1) - 1, 1 + NOTHING))
    return max(1, math.ceil(math.log(lost / (ENOUGH * TOLERANCE)) / 2 / growth))  # energy is a square


def energy_lost(values: Tensor, residuals: Tensor, further: float) -> float:
    """Share of its energy that a direction found lacks, the mean over all sought.

    A Ritz value with a residual of length r lies below its eigenvalue by at most r, and by at most r^2 / gap, the gap
    being that to the eigenvalues that have no part in the space (Parlett, The Symmetric Eigenvalue Problem, 11.7). The
    last value that the space holds stands for these, which makes it an estimate.

    Args:    values (count,), residuals |G z - theta z| (count,); further: the last value.
    """
    r = residuals.to(values)
    return float((r / values * (r / (values - further).clamp(min=1e-30)).clamp(max=1)).mean())


def eigen(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, strongest first, and vectors, on the CPU: a GPU is slow at small ones. What is below NOTHING of the
    strongest counts as that much."""
    values, vectors = torch.linalg.eigh(symmetric.cpu())
    return values.flip(-1).clamp(min=max(float(values[-1]) * NOTHING, 1e-30)), vectors.flip(-1)


def _random(like: Tensor, columns: int, seed: int) -> Tensor:
    """(n, columns) for a vector (n,) on its device, drawn on the CPU: equal on every device."""
    return torch.randn(len(like), columns, generator=torch.Generator().manual_seed(seed)).to(like.device)
