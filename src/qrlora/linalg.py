"""Subspaces of weights and low-rank pairs.

Letters, the same in every file: o outputs, i inputs, r rank (r <= min(o, i)), b batch.
A weight W is (o, i); a pair is A (r, i) and B (o, r); its update is B A.
"""

# pyright: strict, reportConstantRedefinition=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# Strict but for the letters of matrices, which are no constants, and for torch.linalg, which has no types.

import torch
from torch import Tensor

from .lanczos import DIRECTIONS_AT_ONCE, leading_singular_vectors

LANCZOS_MIN_RATIO = 8
"""Smaller side of a weight, in multiples of the directions sought, from which Lanczos is faster than all
eigenvectors."""


def leading_subspace(weight: Tensor, rank: int, side: str = "input", exact: bool = False) -> Tensor:
    """The strongest input or output directions of a weight: the first result of `subspace_and_lost_fraction`."""
    return subspace_and_lost_fraction(weight, rank, side, exact)[0]


def subspace_and_lost_fraction(
    weight: Tensor, rank: int, side: str = "input", exact: bool = False
) -> tuple[Tensor, float]:
    """The strongest input or output directions of a weight, and the fraction of squared Frobenius norm that they lack.

    The fraction lost is 1 - |W Q|^2 / |W V_r|^2 for the best directions V_r of the same number.

    QR-LoRA (arXiv 2507.04599, eq. 3-6) takes Q from the QR of V_r S_r, whose columns are
    already orthogonal: Q is V_r, the leading right singular vectors (side "input"). The left
    ones, U_r, span the Q of QR(W_r), which the authors' code freezes (side "output").
    Both are eigenvectors of a Gram matrix of W, so the smaller one is taken and a thin QR
    carries it over to the longer side; no full SVD is needed.

    Large weights go through `leading_singular_vectors` and stop by TOLERANCE; small ones, those whose spectrum does not
    let it converge, and `exact` through all eigenvectors in float64. Equal weights give equal bits on one machine with
    one number of threads. Other devices round otherwise: there, as between two dtypes of one base, directions turn
    within their span, and the span by less than is asked of it.

    Args:    weight (o, i), any float dtype and device.  rank: a count of directions.
    Returns: Q float32, on the weight's device: (i, r) for "input", (o, r) for "output";
             orthonormal columns, strongest first, the entry of largest magnitude of each
             column positive; and the `lost_fraction` of the whole batch of directions, 0 where all eigenvectors were
             found.
    Raises:  ValueError: not a matrix, rank outside 1..min(o, i), unknown side, NaN or infinity.
    """
    if side not in ("input", "output"):
        raise ValueError(f"side must be 'input' or 'output', got {side!r}")
    if weight.ndim != 2 or not weight.is_floating_point():
        raise ValueError(f"a weight is a matrix of floats, got shape {tuple(weight.shape)} of {weight.dtype}")
    if not 1 <= rank <= min(weight.shape):
        raise ValueError(f"rank must lie in 1..{min(weight.shape)} for shape {tuple(weight.shape)}, got {rank}")
    device = weight.device
    matrix = weight.detach().to("cpu" if device.type == "mps" else device)  # MPS has no float64
    low, high = matrix.aminmax()  # either is NaN where an entry is
    if not (low.isfinite() and high.isfinite()):
        raise ValueError(f"the weight of shape {tuple(weight.shape)} holds NaN or infinity")
    tall = matrix if side == "output" else matrix.T  # (wanted side, other side)
    wanted, other = tall.shape
    count, short = (
        rank_of_whole_batches(rank),
        (tall if wanted > other else tall.T),
    )  # (larger side, smaller side)
    found, lost = None, 0.0
    if not exact and LANCZOS_MIN_RATIO * count <= min(wanted, other):
        found = leading_singular_vectors(short.float(), torch.maximum(-low, high).float(), count)
    if found:
        directions, images, lost = found
        # in float64: float32's sums of equal numbers round one way, on some processors by ten times its resolution
        leading = torch.linalg.qr((images if wanted > other else directions).double()).Q
    else:
        leading = all_singular_vectors(short)[:, : min(count, wanted, other)]
        leading = torch.linalg.qr(tall.double() @ leading).Q if wanted > other else leading
    return _fix_signs(leading[:, :rank].float()).to(device), lost


def rank_of_whole_batches(rank: int) -> int:
    """Directions that are sought for a rank: the next multiple of DIRECTIONS_AT_ONCE."""
    return -(-rank // DIRECTIONS_AT_ONCE) * DIRECTIONS_AT_ONCE


def all_singular_vectors(matrix: Tensor) -> Tensor:
    """Right singular vectors of a matrix (m, n), m >= n, strongest first, (n, n), float64: the eigenvectors of its Gram
    matrix, in float64 because that squares the condition. The reference for `lanczos.py`."""
    exact = matrix.double()
    return torch.linalg.eigh(exact.T @ exact).eigenvectors.flip(-1)  # eigh sorts upwards


def principal_angles(first: Tensor, second: Tensor) -> Tensor:
    """Cosines of the angles between two subspaces, largest first.

    Args:    first (n, r), second (n, s): orthonormal columns.
    Returns: (min(r, s),) in 0..1: 1 where a direction is shared, 0 where it is perpendicular.
    Raises:  ValueError: the columns live in spaces of different size.
    """
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second):
        raise ValueError(f"bases of one space must have equally many rows, got {first.shape} and {second.shape}")
    return torch.linalg.svdvals(first.T @ second).clamp(0, 1)


def least_squares_coordinates(directions: Tensor, vectors: Tensor) -> Tensor:
    """Least-squares coordinates C of vectors in given directions: argmin_C |directions C - vectors|.

    Equal to directions^T vectors for orthonormal directions, and right for directions that were
    rounded to 16 bits or scaled as well. Directions may be linearly dependent.

    Args:    directions (n, r), vectors (n, m), float32 on the CPU.
    Returns: (r, m).
    """
    gram = directions.T @ directions
    if torch.dist(gram, torch.eye(len(gram))) < 0.1:  # nearly orthonormal: the normal equations lose nothing
        return torch.linalg.solve(gram, directions.T @ vectors)
    # Not torch.linalg.lstsq: for dependent columns its "gelsy" gave a wrong solution in one of eight random cases.
    # The Gram matrix squares singular values, hence float64 and the square of 1e-5, where float32 sees dependence.
    D = directions.double()
    return (torch.linalg.pinv(D.T @ D, rtol=1e-10, hermitian=True) @ (D.T @ vectors.double())).to(vectors.dtype)


def low_rank_factors(dense: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The best pair of a rank for a dense update (Eckart-Young): B its leading output directions, A = B^T dense.

    Args:    dense (o, i); rank 1..min(o, i).
    Returns: A (rank, i), B (o, rank) with orthonormal columns, float32, and the fraction of |dense|^2 kept in 0..1 (1
             for a zero update).
    Raises:  ValueError: as leading_subspace.
    """
    B = leading_subspace(dense, rank, "output")
    A = B.T @ dense.float()
    total = float(dense.double().square().sum())
    return A, B, min(float(A.double().square().sum()) / total, 1.0) if total else 1.0


def update_inner_product(A: Tensor, B: Tensor, other_A: Tensor, other_B: Tensor) -> float:
    """<B A, B' A'>, the sum of products of all entries of two updates, without forming either.

    Equals the sum of entries of (B^T B') * (A A'^T), two r x r' matrices.
    """
    return float(to_double((B.T @ other_B) * (A @ other_A.T)).sum())


def to_double(tensor: Tensor) -> Tensor:
    """A tensor in float64, on the CPU if its device has none: Apple's GPUs."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def is_finite(tensor: Tensor) -> bool:
    """No NaN and no infinity anywhere. One pass; a finite sum proves it, any other sum is looked into."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def _fix_signs(columns: Tensor) -> Tensor:
    """A singular vector's sign is free: choose the entry of largest magnitude of each column positive."""
    largest = columns.gather(0, columns.abs().argmax(0, keepdim=True))
    return columns * torch.where(largest < 0, -1.0, 1.0)
