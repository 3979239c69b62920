"""Folding an update into its weight while images are sampled: W + B A replaces W, and costs nothing to apply.

Whether to fold is decided before anything of a weight's size is formed. Letters: o outputs, i inputs, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ..linalg import update_inner_product

MAX_ROUNDING_ERROR = 0.01
"""Largest relative error of the update by rounding the sum to half precision. Unfolded, its products are rounded, too,
each by about 0.002 (2^-9) in bfloat16."""
MAX_MEMORY_FRACTION = 0.5
"""Fraction of a GPU's free memory for folded weights, copies beside the originals; sampling needs the rest."""


def fits_in_gpu_memory(weights: Iterable[Tensor]) -> bool:
    """Whether the originals of folded weights fit into MAX_MEMORY_FRACTION of a GPU's free memory; True on other
    devices."""
    on_gpu = [W for W in weights if W.device.type == "cuda"]
    if not on_gpu:
        return True
    device = on_gpu[0].device
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return sum(W.numel() * W.element_size() for W in on_gpu) <= MAX_MEMORY_FRACTION * free


def rounding_is_negligible(W: Tensor, A: Tensor, B: Tensor) -> bool:
    """Whether folding is exact enough: rounding W + B A to W's dtype changes the update by no more than
    MAX_ROUNDING_ERROR, from three norms.

    A number m 2^e with 1 <= m < 2 is rounded to a multiple of eps 2^e: evenly spread, the error is eps 2^e / sqrt(12),
    and the root mean square of m is sqrt(7 / 3). Below the smallest normal number the steps no longer shrink.

    Args: W (o, i) of any float dtype, A (r, i) and B (o, r) in float32.
    """
    if W.dtype.itemsize >= torch.float32.itemsize:
        return True
    limits = torch.finfo(W.dtype)
    update = math.sqrt(max(update_inner_product(A, B, A, B), 0.0))
    inner_product = float(((B.to(W.dtype).T @ W).float() * A).sum())  # <W, B A>
    total = float(torch.linalg.vector_norm(W, dtype=torch.float32)) ** 2 + 2 * inner_product + update**2
    relative, step = limits.eps / math.sqrt(12 * 7 / 3), limits.smallest_normal * limits.eps / math.sqrt(12)
    return relative**2 * max(total, 0.0) + step**2 * W.numel() <= (MAX_ROUNDING_ERROR * update) ** 2


def fold_update(W: Tensor, A: Tensor, B: Tensor) -> Tensor | None:
    """Fold an update into a weight: W + B A in W's dtype, the sum in float32; None if a GPU's memory runs out: then the
    update stays unfolded."""
    try:
        exact = W.to(torch.promote_types(W.dtype, torch.float32))
        return torch.addmm(exact, B.to(exact), A.to(exact)).to(W.dtype)
    except torch.cuda.OutOfMemoryError:
        return None
