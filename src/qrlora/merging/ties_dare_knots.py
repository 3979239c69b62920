"""The sparse merging rules TIES, DARE and KnOTS, which keep a part of each update's entries. They work on B A, not on A
and B apart.

Letters: o outputs, i inputs, r rank, n adapters, w the weight of an adapter in the merge.

A layer that one adapter alone has is that adapter's share of a merge with zeros. Trimming is done in each layer by
itself, as PEFT's; the papers' codes trim over all layers at once.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..adapter import Adapter, Pair
from ..linalg import low_rank_factors
from .sum_and_stack import Merged, _layers_of

DENSITY = 0.2
"""Share of the entries that TIES keeps (arXiv 2306.01708)."""
DROP = 0.9
"""Share of the entries that DARE drops (arXiv 2311.03099)."""
NOISE = 1e-5
"""Singular values up to this are none (KnOTS' code)."""


def ties(adapters: Sequence[Adapter], weights: Sequence[float], *, density: float = DENSITY) -> Merged:
    """TIES: trim each update to its largest entries, elect a sign for each entry, average those that have it.

    See `elect_sign_and_average`. The result is dense; it is cut to rank r_1 + r_2 + ..., and header.config says the
    relative error.

    Args:    density: fraction of each update's entries that stay, above 0 and up to 1.
    Raises:  ValueError: another density.
    """
    _check_density(density)
    layers, error = _merge_dense_updates(
        adapters, weights, lambda updates, w: elect_sign_and_average(trim_to_largest(updates, density), w)
    )
    return Merged(layers, "ties", None, {"density": density, "truncation_error": error})


def dare(adapters: Sequence[Adapter], weights: Sequence[float], *, drop: float = DROP, seed: int = 0) -> Merged:
    """DARE: drop entries of each update at random, with probability p, and divide the others by 1 - p; then the sum.

    Its mean over seeds is the sum of the updates. Dense and cut to a rank as `ties`.

    Args:    drop: p, the fraction of entries that are dropped, from 0 to below 1.
    Raises:  ValueError: another p; a negative seed.
    """
    if not 0 <= drop < 1:
        raise ValueError(f"drop is the fraction of entries that are dropped, 0 <= drop < 1, got {drop:g}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    generator = torch.Generator().manual_seed(seed)

    def thinned(updates: Tensor, w: Tensor) -> Tensor:
        kept = torch.rand(updates.shape, generator=generator) >= drop
        return (w * updates * kept / (1 - drop)).sum(0)

    layers, error = _merge_dense_updates(adapters, weights, thinned)
    return Merged(layers, "dare", None, {"drop": drop, "seed": seed, "truncation_error": error})


def knots(adapters: Sequence[Adapter], weights: Sequence[float], *, density: float = DENSITY) -> Merged:
    """KnOTS: TIES in a common space: [dW_1 .. dW_n] = U S [V_1 .. V_n]; merge S V_k by TIES and return U (merged).

    With the thin QR [B_1 .. B_n] = P K, dW_k = P K_k A_k, so the SVD of the small [K_1 A_1 .. K_n A_n] suffices. The
    rank is at most r_1 + r_2 + ..., and nothing is cut.

    Args:    density: as of `ties`.
    Raises:  ValueError: another density.
    """
    _check_density(density)
    layers = {}
    for layer in _layers_of(adapters):
        pairs = [x.layers.get(layer) for x in adapters]
        there = [pair for pair in pairs if pair is not None]
        P, K = torch.linalg.qr(torch.cat([pair.B.double() for pair in there], 1))
        columns = iter(K.split([pair.rank for pair in there], 1))
        nothing = torch.zeros(len(K), there[0].A.shape[1], dtype=torch.float64)
        within = [nothing if pair is None else next(columns) @ pair.A.double() for pair in pairs]  # each (R, i)
        u, s, _ = torch.linalg.svd(torch.cat(within, 1), full_matrices=False)
        u = u[:, : max(1, int((s > NOISE).sum()))]
        tasks = torch.stack([u.T @ x for x in within])  # S V_k
        layers[layer] = Pair(
            elect_sign_and_average(trim_to_largest(tasks, density), _column(weights, tasks)).float(), (P @ u).float()
        )
    return Merged(layers, "knots", None, {"density": density})


def _check_density(density: float) -> None:
    """Raises ValueError unless 0 < density <= 1."""
    if not 0 < density <= 1:
        raise ValueError(f"density is the fraction of entries that stay, 0 < density <= 1, got {density:g}")


def trim_to_largest(updates: Tensor, density: float) -> Tensor:
    """TIES' trimming: each update (n, o, i) with all but its largest magnitudes zero: int(density o i) entries stay, at
    least one."""
    flat = updates.flatten(1)
    largest = flat.abs().topk(max(1, int(density * flat.shape[1])), dim=1).indices
    return torch.zeros_like(flat).scatter(1, largest, flat.gather(1, largest)).view_as(updates)


def elect_sign_and_average(updates: Tensor, weights: Tensor) -> Tensor:
    """By entry the sign of the weighted sum, and the mean of the weighted entries that have it (arXiv 2306.01708).

    Args:    updates (n, o, i), weights (n, 1, 1).
    Returns: (o, i); 0 where no entry is left.
    """
    weighted = weights * updates
    agree = (weighted.sign() == weighted.sum(0).sign()) & (weighted != 0)
    return (weighted * agree).sum(0) / agree.sum(0).clamp_min(1)


def _merge_dense_updates(
    adapters: Sequence[Adapter], weights: Sequence[float], rule: Callable[[Tensor, Tensor], Tensor]
) -> tuple[dict[str, Pair], float]:
    """Apply a sparse rule to each layer's dense updates (n, o, i), and cut the result to rank r_1 + r_2 + ...; with the
    whole relative error.

    The error is |merged - cut| / |merged|, both Frobenius over all layers.
    """
    layers, lost, total = {}, 0.0, 0.0
    for layer in _layers_of(adapters):
        pairs = [x.layers.get(layer) for x in adapters]
        o, i = next(pair.shape for pair in pairs if pair is not None)
        updates = torch.stack([torch.zeros(o, i) if pair is None else pair.B @ pair.A for pair in pairs])
        merged = rule(updates, _column(weights, updates))
        rank = min(o, i, sum(pair.rank for pair in pairs if pair is not None))
        A, B, kept = low_rank_factors(merged, rank)
        layers[layer] = Pair(A, B)
        square = float(merged.double().square().sum())
        lost, total = lost + (1 - kept) * square, total + square
    return layers, (lost / total) ** 0.5 if total else 0.0


def _column(weights: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(weights, dtype=like.dtype).view(-1, 1, 1)
