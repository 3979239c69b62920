"""Layers that an original model keeps in one: their pairs as one pair, and back.

Letters: o outputs, i inputs, r rank. Transformers in their authors' code often have one weight for q, k and v, or for
these and the MLP's input: the layers' outputs below each other, as many as Layout.heights says.
"""

from collections.abc import Mapping, Sequence

import torch

from ..adapter import Pair
from ..layouts import Layout


def fuse_layers(pairs: Mapping[str, Pair], layout: Layout, layers: Sequence[str]) -> tuple[Pair, list[int]]:
    """One pair for layers that lie in one, exactly: A below each other and B block-diagonal, at the sum of the ranks;
    or the one A that all share. Layers without a pair get zeros.

    Returns: the pair, and each layer's rank (0: no pair), with which `split_layers` gives the same pairs back.
    Raises:  ValueError, naming a layer: inputs or outputs that such layers do not have.
    """
    inputs = next(iter(pairs.values())).shape[1]
    heights = layout.heights(layers, inputs)
    for layer, pair in pairs.items():
        if pair.shape != (heights[layer], inputs):
            wanted = (heights[layer], inputs)
            raise ValueError(
                f"{layer}: cannot lie in one weight with {layers[0]}, its shape is {pair.shape}, not {wanted}"
            )
    given = [pairs[layer].A for layer in layers if layer in pairs]
    shared = all(A is given[0] or (not A.is_meta and torch.equal(A, given[0])) for A in given)
    blocks = [pairs[layer].B if layer in pairs else given[0].new_zeros(heights[layer], 0) for layer in layers]
    if shared:
        nothing = given[0].new_zeros(max(heights.values()), len(given[0]))
        blocks = [pairs[layer].B if layer in pairs else nothing[: heights[layer]] for layer in layers]
    fused = Pair(given[0], torch.cat(blocks)) if shared else Pair(torch.cat(given), torch.block_diag(*blocks))
    return fused, [pairs[layer].rank if layer in pairs else 0 for layer in layers]


def split_layers(
    pair: Pair, layout: Layout, layers: Sequence[str], ranks: Sequence[int] | None = None
) -> dict[str, Pair]:
    """Split the pair of a fused layer into the pairs of the layers that lie in it.

    Args:   ranks: as `fuse_layers` gave them. None, another tool's file: layers whose part of B is zero are left out;
            if B is block-diagonal, in equal blocks, each layer gets its block; otherwise all get the whole A.
    Raises: ValueError: B has not the rows of these layers; ranks that do not fit.
    """
    heights = layout.heights(layers, pair.shape[1])
    if sum(heights.values()) != len(pair.B):
        wanted = f"{sum(heights.values())} outputs for {pair.shape[1]} inputs"
        raise ValueError(f"{', '.join(layers)} lie in one weight, which must have {wanted}, got {len(pair.B)}")
    rows = dict(zip(layers, pair.B.split(list(heights.values())), strict=True))
    if ranks is not None:
        _check_ranks(layers, ranks, pair.rank)
    if ranks is None or not _is_block_diagonal(
        list(rows.values()), ranks, pair.rank
    ):  # another tool has changed it since
        rows = {layer: B for layer, B in rows.items() if B.any()} or rows
        ranks = _equal_ranks(list(rows.values()))
    else:
        rows = {layer: B for (layer, B), rank in zip(rows.items(), ranks, strict=True) if rank}
        ranks = [rank for rank in ranks if rank]
    if sum(ranks) != pair.rank:  # one A for all
        return {layer: Pair(pair.A, B.contiguous()) for layer, B in rows.items()}
    pairs, start = {}, 0
    for (layer, B), rank in zip(rows.items(), ranks, strict=True):
        pairs[layer] = Pair(pair.A[start : start + rank], B[:, start : start + rank].contiguous())
        start += rank
    return pairs


def swap_shift_and_scale(pair: Pair, layout: Layout, layer: str, spelling: str) -> Pair:
    """The pair of a layer with its outputs in diffusers' order, or back in the order of a spelling: of the last
    modulation the original models keep shift and scale the other way round."""
    outputs, inputs = pair.shape
    if outputs != 2 * inputs or not layout.is_swapped(layer, spelling):
        return pair
    return Pair(pair.A, pair.B.roll(inputs, 0))


def _check_ranks(layers: Sequence[str], ranks: Sequence[int], rank: int) -> None:
    """Raises ValueError: ranks of a header that are none of this pair."""
    if len(ranks) != len(layers) or sum(ranks) != rank and set(ranks) - {0, rank}:
        raise ValueError(f"{layers[0]}: the file's header gives ranks {list(ranks)} for a pair of rank {rank}")


def _is_block_diagonal(blocks: Sequence[torch.Tensor], ranks: Sequence[int], rank: int) -> bool:
    """Whether a fused layer's B is block-diagonal: rows (o_k, r) of layers with these ranks hold nothing beside their
    own columns."""
    start, shared = 0, sum(ranks) != rank
    for B, own in zip(blocks, ranks, strict=True):
        columns = slice(0, own) if shared else slice(start, start + own)
        start += own
        if B.count_nonzero() > B[:, columns].count_nonzero():
            return False
    return True


def _equal_ranks(blocks: Sequence[torch.Tensor]) -> list[int]:
    """The equal ranks of a fused layer's block-diagonal rows (o_k, r), or all of r for each where they are not
    block-diagonal."""
    whole = blocks[0].shape[1]
    rank, rest = divmod(whole, len(blocks))
    for k, B in enumerate(blocks):
        outside = torch.cat([B[:, : k * rank], B[:, (k + 1) * rank :]], 1)
        if rest or outside.any():
            return [whole] * len(blocks)
    return [rank] * len(blocks)
