"""The Muon optimizer for a network's matrices (Jordan et al. 2024; step sizes as in arXiv 2502.16982).

torch has one; it orthogonalises in bfloat16, which is some hundred times slower than float32 on CPUs without it, and
one matrix at a time.  Here the dtype is the caller's, matrices of one shape are done together, and a convolution's
weight (o, i, h, w) counts as the matrix (o, i h w).
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of x -> a x + b x^3 + c x^5, which carries every singular value of a normalised matrix near 1."""
ITERATIONS = 5


def orthogonalize(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Muon's Newton-Schulz iteration: approximately U V^T of each matrix U S V^T: (n, o, i) -> (n, o, i), singular
    values in 0.7..1.2, in ``dtype``."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(gram, gram, gram, beta=b, alpha=c) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum, with steps of AdamW's size: 0.2 sqrt(max(o, i)) lr."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One update of all parameters by Muon."""
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for shape, members in by_shape.items():
                self._update_matrices(members, shape, group)

    def _update_matrices(self, members: list[Tensor], shape: torch.Size, group: dict[str, Any]) -> None:
        """Muon's update of all matrices of one shape at once."""
        for p in members:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        gradients: Any = [p.grad for p in members]
        buffers: Any = [self.state[p]["momentum_buffer"] for p in members]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        steps = torch._foreach_lerp(gradients, buffers, group["momentum"])
        matrices = torch.stack(steps).flatten(2)
        update = orthogonalize(matrices, self.dtype).to(members[0].dtype).view(len(members), *shape)
        size = 0.2 * max(matrices.shape[1:]) ** 0.5 * group["lr"]
        torch._foreach_mul_(members, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(members, list(update.unbind()), alpha=-size)
