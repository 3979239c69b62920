"""Norms of an adapter's updates, and how similar two adapters are, layer by layer.

Letters: o outputs, i inputs, r rank. Updates are compared through r x r matrices, never formed.
"""

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from .adapter import Adapter, Pair
from .basis import Weights
from .config.type_checks import ADAPTER_HINT, check_instance
from .initialisation_methods import METHODS
from .linalg import leading_subspace

NEGLIGIBLE = 1e-6
"""Directions below this fraction of a factor's largest squared singular value do not count: to float32 they are 0."""


class UpdateNorm(NamedTuple):
    """The norm of one layer's update."""

    layer: str
    norm: float
    """|B A|, Frobenius."""
    share: float
    """|B A|^2 as a fraction of the adapter's squared Frobenius norm, 0..1; 0 for a zero adapter."""


class Similarity(NamedTuple):
    """Cosines and overlaps of one layer of two adapters. A number that has no meaning there (a zero update) is NaN."""

    layer: str
    update: float
    """Cosine of the updates B A, -1..1."""
    trained: float
    """Cosine of the trained factors (B = dR^T, or A where B is frozen), -1..1; NaN for ranks that differ."""
    input_overlap: float
    """Mean squared cosine of the principal angles between the spans of A, 0..1."""
    output_overlap: float
    """Mean squared cosine of the principal angles between the spans of B, 0..1."""
    first_norm: float
    """|B A| of the first."""
    second_norm: float
    """|B A| of the second."""

    @property
    def learned(self) -> float:
        """The old name of `trained`, how far an adapter was analysed to have been trained."""
        warnings.warn(
            "Similarity.learned is now .trained; the old name goes with 0.3", DeprecationWarning, stacklevel=2
        )
        return self.trained


class SharedSpan(NamedTuple):
    """One layer of two bases: their leading directions, Q and Q' (i, r) or (o, r)."""

    layer: str
    overlap: float
    """Mean squared cosine of the principal angles between the spans, |Q^T Q'|^2 / r, 0..1."""
    kept: float
    """|W' Q|^2 / |W' Q'|^2 of the second base's weight W' (of W'^T on the output side), 0..1: how much of what its own
    leading directions hold lies along the first base's."""


class Interference(NamedTuple):
    """Two whole adapters: how much the update of one can be expected to disturb that of the other.

    Layer l has the weight |dW_l| |dW'_l| / (|dW| |dW'|), and 0 where only one of them adapts it: adapters on
    different layers do not interfere. NaN for a zero adapter.
    """

    cosine: float
    """Cosine of the whole updates, -1..1: the weighted sum of the layers' cosines."""
    input_overlap: float
    """Weighted sum of the overlaps of the spans of A, 0..1."""
    output_overlap: float
    """Weighted sum of the overlaps of the spans of B, 0..1."""
    read_together: float
    """Weighted sum of |dW dW'^T| / (|dW| |dW'|), 0..1: whether they act on the same inputs, by strength."""
    written_together: float
    """Weighted sum of |dW^T dW'| / (|dW| |dW'|), 0..1: whether they change the same outputs, by strength."""


def update_norms(adapter: Adapter) -> list[UpdateNorm]:
    """Analyse an adapter: Frobenius norm of each layer's update, in the adapter's order."""
    check_instance("adapter", adapter, Adapter, ADAPTER_HINT)
    squares = {layer: pair.squared_norm for layer, pair in adapter.layers.items()}
    total = sum(squares.values())
    return [UpdateNorm(layer, math.sqrt(x), x / total if total else 0.0) for layer, x in squares.items()]


def similarity(first: Adapter, second: Adapter) -> list[Similarity]:
    """Analyse how alike two adapters are, layer by layer, on the layers they share, in the first's order.

    Raises: ValueError: no shared layer; a shared layer of different shape, naming the bases.
    """
    for adapter in (first, second):
        check_instance("adapter", adapter, Adapter, ADAPTER_HINT)
    first.check_shapes(second)
    shared = [layer for layer in first.layers if layer in second.layers]
    if not shared:
        raise ValueError(f"no layer is in both adapters ({len(first.layers)} and {len(second.layers)} layers)")
    methods = [METHODS.get(adapter.header.method) for adapter in (first, second)]
    trains_A = all(method is not None and method.frozen_side == "output" for method in methods)
    return [_similarity(layer, first.layers[layer], second.layers[layer], trains_A) for layer in shared]


def shared_span(first: Weights, second: Weights, rank: int, side: str = "input") -> list[SharedSpan]:
    """Analyse two bases: how much of the span of their r leading directions two bases share, layer by layer, in the
    first's order. An adapter with frozen directions that is trained on the first and drawn with the second moves along
    the first's.

    Raises: ValueError: a layer that the second lacks or has in another shape; see `linalg.leading_subspace`.
    """
    wrong = next((x for x, shape in first.layers.items() if second.layers.get(x) != shape), None)
    if wrong is not None:
        shapes = f"{first.layers[wrong]} in one base and {second.layers.get(wrong, 'absent')} in the other"
        raise ValueError(f"{wrong} is {shapes}: an adapter of the one does not fit the other")
    rows = []
    for layer, weight in first:
        other = second.read(layer)
        Q, own = (leading_subspace(x, rank, side) for x in (weight, other))
        W = other.float() if side == "input" else other.float().T
        rows.append(SharedSpan(layer, _squares(Q.T @ own) / rank, _squares(W @ Q) / _squares(W @ own)))
    return rows


def _squares(x: Tensor) -> float:
    """The squared Frobenius norm, summed in float64."""
    return float(x.double().square().sum())


def interference(first: Adapter, second: Adapter) -> Interference:
    """Analyse two adapters: their interference, from their factors alone.

    Raises: ValueError: a shared layer of different shape, naming it.
    """
    whole = math.sqrt(
        sum(x.squared_norm for x in first.layers.values()) * sum(x.squared_norm for x in second.layers.values())
    )
    if not whole:
        return Interference(*[math.nan] * 5)
    totals = [0.0] * 5
    rows = similarity(first, second) if first.layers.keys() & second.layers.keys() else []
    for row in rows:
        weight = row.first_norm * row.second_norm / whole
        if weight:
            shared = _shared_reads_and_writes(first.layers[row.layer], second.layers[row.layer])
            parts = (row.update, row.input_overlap, row.output_overlap, *shared)
            totals = [total + weight * part for total, part in zip(totals, parts, strict=True)]
    return Interference(*totals)


def trainable_parameters(adapter: Adapter) -> int:
    """Parameters that the adapter's method trains at the header's rank, over all its layers. Of PEFT's own methods,
    which a plain LoRA's factors do not show, the header's config says it.

    Raises: ValueError: a method that is not in METHODS, such as a merge's "stack".
    """
    header = adapter.header
    if "trained" in header.config:
        return int(header.config["trained"])
    if header.method not in METHODS:
        raise ValueError(f"method {header.method!r} trains nothing; choose one of {', '.join(METHODS)}")
    rank = header.rank or adapter.rank
    return sum(METHODS[header.method].trainable_parameters(o, i, rank) for o, i in adapter.shapes.values())


def _similarity(layer: str, a: Pair, b: Pair, trains_A: bool) -> Similarity:
    """One row of `similarity`. With <X, Y> the sum of products, <B A, B' A'> is that of B^T B' and A A'^T."""
    inputs, outputs = _grams(a.A.T, b.A.T), _grams(a.B, b.B)
    square_a, square_b, cross = (float((x * y).sum(dtype=torch.float64)) for x, y in zip(inputs, outputs, strict=True))
    factors = inputs if trains_A else outputs
    same_rank = a.rank == b.rank
    return Similarity(
        layer=layer,
        update=_cosine(cross, square_a, square_b),
        trained=_cosine(*(float(factors[k].trace()) for k in (2, 0, 1))) if same_rank else math.nan,
        input_overlap=_span_overlap(*inputs),
        output_overlap=_span_overlap(*outputs),
        first_norm=math.sqrt(max(square_a, 0.0)),
        second_norm=math.sqrt(max(square_b, 0.0)),
    )


def _grams(X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """X^T X, Y^T Y and X^T Y; one product where X is Y, as the frozen factors of one basis are."""
    first = X.T @ X
    return (first, first, first) if torch.equal(X, Y) else (first, Y.T @ Y, X.T @ Y)


def _shared_reads_and_writes(a: Pair, b: Pair) -> tuple[float, float]:
    """|dW dW'^T| and |dW^T dW'| over |dW| |dW'|; |B M B'^T|^2 is tr(B^T B M B'^T B' M^T), here with M = A A'^T."""
    squares = (
        _gram_trace(a.A @ b.A.T, a.B.T @ a.B, b.B.T @ b.B),
        _gram_trace(a.B.T @ b.B, a.A @ a.A.T, b.A @ b.A.T),
    )
    read, written = (min(math.sqrt(square / (a.squared_norm * b.squared_norm)), 1.0) for square in squares)
    return read, written


def _gram_trace(between: Tensor, own_a: Tensor, own_b: Tensor) -> float:
    """tr(G_a M G_b M^T) for Gram matrices G and M (r, r') between."""
    M = between.double()
    return max(float((own_a.double() @ M @ own_b.double() * M).sum()), 0.0)


def _cosine(cross: float, square_a: float, square_b: float) -> float:
    """cross / sqrt(square_a square_b), NaN where one is zero."""
    return max(-1.0, min(1.0, cross / math.sqrt(square_a * square_b))) if min(square_a, square_b) > 0 else math.nan


def _span_overlap(gram_a: Tensor, gram_b: Tensor, cross: Tensor) -> float:
    """The overlap |Q_a^T Q_b|^2 / min(r_a, r_b) of the spans with Gram matrices X^T X, Y^T Y and X^T Y; NaN for an
    empty span."""
    if cross is gram_a:
        return 1.0 if gram_a.any() else math.nan
    whiten_a, whiten_b = _inverse_root(gram_a), _inverse_root(gram_b)
    counted = min(whiten_a.shape[1], whiten_b.shape[1])
    if counted == 0:
        return math.nan
    return min(float((whiten_a.T @ cross.double() @ whiten_b).square().sum()) / counted, 1.0)


def _inverse_root(gram: Tensor) -> Tensor:
    """The inverse root of a Gram matrix, for overlaps: K (r, s) with K^T gram K = I on the s directions that count."""
    exact = gram.double()
    factor, failed = torch.linalg.cholesky_ex(exact)
    pivots = factor.diagonal().square()
    if not failed and pivots.min() > 1e3 * NEGLIGIBLE * pivots.max():  # all count, far from the limit: 4 x faster
        return torch.linalg.solve_triangular(factor.T, torch.eye(len(exact), dtype=exact.dtype), upper=True)
    values, vectors = torch.linalg.eigh(exact)
    counts = values > NEGLIGIBLE * values[-1].clamp_min(0)
    return vectors[:, counts] * values[counts].rsqrt()
