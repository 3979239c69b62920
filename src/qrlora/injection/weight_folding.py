"""Whether an update is written into its weight for a while, W + B A in W's place, which then costs nothing to apply.

All is decided before anything of a weight's size is formed. Letters: o outputs, i inputs, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ..linalg import inner

ROUNDED = 0.01
"""In half precision an update is folded into its weight where rounding the sum takes no more of the update than this.
Its own products beside the weight are rounded, too, each by about 0.002 (2^-9) in bfloat16."""
SHARE = 0.5
"""Of a GPU's free memory: folded weights, copies beside the originals, may take no more; pictures need the rest."""


def has_room(weights: Iterable[Tensor]) -> bool:
    """Whether copies of these weights leave enough of their GPU's memory; elsewhere True."""
    on_gpu = [W for W in weights if W.device.type == "cuda"]
    if not on_gpu:
        return True
    device = on_gpu[0].device
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return sum(W.numel() * W.element_size() for W in on_gpu) <= SHARE * free


def keeps(W: Tensor, A: Tensor, B: Tensor) -> bool:
    """Whether rounding W + B A to W's type leaves the update what it is, from three norms.

    A number m 2^e with 1 <= m < 2 is rounded to a multiple of eps 2^e: evenly spread, the error is eps 2^e / sqrt(12),
    and the root mean square of m is sqrt(7 / 3). Below the smallest normal number the steps no longer shrink.

    Args: W (o, i) of any floating type, A (r, i) and B (o, r) in float32.
    """
    if W.dtype.itemsize >= torch.float32.itemsize:
        return True
    limits = torch.finfo(W.dtype)
    update = math.sqrt(max(inner(A, B, A, B), 0.0))
    along = float(((B.to(W.dtype).T @ W).float() * A).sum())  # <W, B A>
    total = float(torch.linalg.vector_norm(W, dtype=torch.float32)) ** 2 + 2 * along + update**2
    relative, step = limits.eps / math.sqrt(12 * 7 / 3), limits.smallest_normal * limits.eps / math.sqrt(12)
    return relative**2 * max(total, 0.0) + step**2 * W.numel() <= (ROUNDED * update) ** 2


def folded(W: Tensor, A: Tensor, B: Tensor) -> Tensor | None:
    """W + B A in W's type, the sum in float32; None where a GPU's memory runs out: the update stays beside the weight,
    where it needs next to none."""
    try:
        exact = W.to(torch.promote_types(W.dtype, torch.float32))
        return torch.addmm(exact, B.to(exact), A.to(exact)).to(W.dtype)
    except torch.cuda.OutOfMemoryError:
        return None
