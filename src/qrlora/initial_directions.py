"""Directions that an adapter may start from: slots of an orthogonal basis, the weakest ones of a weight.

Letters: o outputs, i inputs, r rank.
"""

import torch
from torch import Tensor

from .linalg import is_finite


def slot_directions(size: int, rank: int, slot: int) -> Tensor:
    """Columns slot r .. (slot + 1) r of one orthogonal basis, the same for every adapter of that size and rank.

    The basis comes from the QR of Gaussian columns drawn in order, so that a slot's columns do not depend on how many
    come after it. Public implementations draw random columns for each concept: those overlap, or with one seed are all
    equal.

    Returns: (size, r) float32.
    Raises:  ValueError: the slot lies outside size // r.
    """
    if not 0 <= slot < size // rank:
        raise ValueError(f"{size} inputs hold {size // rank} slots of rank {rank}, got slot {slot}: use a lower rank")
    generator = torch.Generator().manual_seed(0)
    # one column at a time: of many at once torch draws the last 16 numbers anew, unless their count is a multiple of 16
    columns = [torch.randn(size, dtype=torch.float64, generator=generator) for _ in range((slot + 1) * rank)]
    axes = torch.linalg.qr(torch.stack(columns, 1))
    sign = torch.where(axes.R.diagonal() < 0, -1.0, 1.0)
    return (axes.Q * sign)[:, slot * rank :].float().contiguous()


def minor_directions(weight: Tensor, rank: int) -> Tensor:
    """The initial directions of a method that starts from the weakest: the last right singular vectors of a weight's
    thin SVD, in float64.

    They are those that MiLoRA (arXiv 2406.09044) starts from.

    Args:    weight (o, i).
    Returns: (i, r) float32, orthonormal, weakest last.
    Raises:  ValueError: rank outside 1..min(o, i), NaN or infinity.
    """
    if not 1 <= rank <= min(weight.shape) or not is_finite(weight):
        raise ValueError(f"needs finite numbers and a rank in 1..{min(weight.shape)}, got rank {rank}")
    exact = torch.linalg.svd(weight.detach().cpu().double(), full_matrices=False)
    return exact.Vh[-rank:].T.float().contiguous()
