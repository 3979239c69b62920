"""Subspaces of weights and low-rank pairs.

Letters, the same in every file: o outputs, i inputs, r rank (r <= min(o, i)), b batch.
A weight W is (o, i); a pair is A (r, i) and B (o, r); its update is B A.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

LOT = 64
"""So many directions are sought at once: a smaller rank is the beginning of a larger one of its lot, bit for bit."""
TOLERANCE = 2e-4
"""The share of its energy that a direction found may lack, see `energy_lost`. All together then lack less than that of
the best possible, and the span, in squared cosines, at most 1e-2 (docs/performance.md)."""
WORTHWHILE = 12
"""The smaller side of a weight must be so many times the lot; below, all its directions are as quickly found."""
BLOCKS = 5
"""Of the Krylov space that `chebyshev` starts from."""
DEGREE, CONTRAST, ROUNDS = 8, 1e4, 32
"""A filter's highest degree; how many times more it may magnify the strongest direction than the weakest sought, which
rounding would drown otherwise; rounds of filter and trial, of which few spectra need more than four."""
NOTHING = 1e-9
"""Energies below this share of the strongest are rounding."""


def leading_subspace(weight: Tensor, rank: int, side: str = "input", exact: bool = False) -> Tensor:
    """The strongest input or output directions of a weight: the first answer of `measured_subspace`."""
    return measured_subspace(weight, rank, side, exact)[0]


def measured_subspace(weight: Tensor, rank: int, side: str = "input", exact: bool = False) -> tuple[Tensor, float]:
    """The strongest input or output directions of a weight, and the share of energy that they lack.

    QR-LoRA (arXiv 2507.04599, eq. 3-6) takes Q from the QR of V_r S_r, whose columns are
    already orthogonal: Q is V_r, the leading right singular vectors (side "input"). The left
    ones, U_r, span the Q of QR(W_r), which the authors' code freezes (side "output").
    Both are eigenvectors of a Gram matrix of W, so the smaller one is taken and a thin QR
    carries it over to the longer side; no full SVD is needed.

    Large weights go through `chebyshev` and stop by TOLERANCE; small ones, those whose spectrum does not let it
    converge, and `exact` through all eigenvectors in float64. Equal weights give equal bits on one machine with one
    number of threads. Other devices round otherwise: there, as between two dtypes of one base, directions turn within
    their span, and the span by less than is asked of it.

    Args:    weight (o, i), any float dtype and device.  rank: a count of directions.
    Returns: Q float32, on the weight's device: (i, r) for "input", (o, r) for "output";
             orthonormal columns, strongest first, the entry of largest magnitude of each
             column positive; and `energy_lost` of the lot they are of, 0 where all eigenvectors were found.
    Raises:  ValueError: not a matrix, rank outside 1..min(o, i), unknown side, NaN or infinity.
    """
    if side not in ("input", "output"):
        raise ValueError(f"side must be 'input' or 'output', got {side!r}")
    if weight.ndim != 2 or not weight.is_floating_point():
        raise ValueError(f"a weight is a matrix of floats, got shape {tuple(weight.shape)} of {weight.dtype}")
    if not 1 <= rank <= min(weight.shape):
        raise ValueError(f"rank must lie in 1..{min(weight.shape)} for shape {tuple(weight.shape)}, got {rank}")
    home = weight.device
    matrix = weight.detach().to("cpu" if home.type == "mps" else home)  # MPS has no float64
    low, high = matrix.aminmax()  # either is NaN where an entry is
    if not (low.isfinite() and high.isfinite()):
        raise ValueError(f"the weight of shape {tuple(weight.shape)} holds NaN or infinity")
    tall = matrix if side == "output" else matrix.T  # (wanted side, other side)
    wanted, other = tall.shape
    count, short = lots(rank), (tall if wanted > other else tall.T)  # (larger side, smaller side)
    found, lost = None, 0.0
    if not exact and WORTHWHILE * count <= min(wanted, other):
        found = chebyshev(short.float(), torch.maximum(-low, high).float(), count)
    if found:
        directions, images, lost = found
        leading = torch.linalg.qr(images if wanted > other else directions).Q
    else:
        leading = all_directions(short)[:, : min(count, wanted, other)]
        leading = torch.linalg.qr(tall.double() @ leading).Q if wanted > other else leading
    return _with_fixed_sign(leading[:, :rank]).float().to(home), lost


def lots(rank: int) -> int:
    """How many directions are sought for a rank: whole lots."""
    return -(-rank // LOT) * LOT


def all_directions(matrix: Tensor) -> Tensor:
    """Right singular vectors of a matrix (m, n), m >= n, strongest first, (n, n), float64: the eigenvectors of its Gram
    matrix, in float64 because that squares the condition. The reference of `chebyshev`."""
    exact = matrix.double()
    return torch.linalg.eigh(exact.T @ exact).eigenvectors.flip(-1)  # eigh sorts upwards


def chebyshev(matrix: Tensor, scale: Tensor, count: int) -> tuple[Tensor, Tensor, float] | None:
    """The leading right singular vectors of a matrix W (m, n), m >= n: subspace iteration with a Chebyshev filter on
    G = W^T W, which is never formed (Zhou, Saad et al., J. Comput. Phys. 219, 2006).

    T_d(2 G / cut - 1) leaves directions of eigenvalues below the cut as small as they are and magnifies the others by
    cosh(d acosh(2 lambda / cut - 1)). The block is LOT columns wider than what is sought, the cut lies half way between
    the weakest sought and the block's last, and the degree d is what TOLERANCE still needs. A trial, Rayleigh-Ritz
    within the block, follows each filter. Products are in bfloat16 where the device is fast at them and as long as they
    help; directions and images of what is returned are from a trial in float32.

    Args:    matrix float32.  scale: its largest magnitude, so that squares neither over- nor underflow.
    Returns: Z (n, count), strongest first, orthonormal to rounding; W Z / scale; the energy lost.
             None where ROUNDS do not bring that to TOLERANCE.
    """
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
    quick = matrix.bfloat16() if has_fast_bfloat16(matrix.device) else matrix

    def times(factor: Tensor, X: Tensor) -> Tensor:
        X = X.to(factor.dtype)  # a large factor is read a sixth faster along its rows in memory
        return (factor @ X if factor.is_contiguous() else (X.T @ factor.T).T).float() / scale

    X, values, residual = krylov(lambda X: times(quick.T, times(quick, X)), matrix, count, count + LOT)
    lost = energy_lost(values, residual, count)
    for _ in range(ROUNDS):
        cut = float(values[count - 1] + values[-1]) / 2
        degree, enough = filter_degree(values[0] / cut, values[count - 1] / cut, lost)
        before, Y = X, (X * values.to(X) + residual) * (2 / cut) - X
        for _ in range(degree - 1):
            before, Y = Y, times(quick.T, times(quick, Y)) * (4 / cut) - 2 * Y - before
        factor = matrix if enough else quick
        X = torch.linalg.qr(Y).Q
        images = times(factor, X)
        inside = images.T @ images
        values, turn = eigen(inside.double())
        turn = turn.to(X)
        images, X, shadow = images @ turn, X @ turn, X @ (inside @ turn)
        last = lost
        if enough:  # rounding only lengthens a residual: one in bfloat16 suffices to see that it is short
            lost = energy_lost(values, times(quick.T, images[:, :count]) - shadow[:, :count], count)
            if lost <= TOLERANCE:
                return X[:, :count], images[:, :count], lost
        residual = times(factor.T, images) - shadow
        lost = energy_lost(values, residual, count)
        if lost <= TOLERANCE and factor is matrix:
            return X[:, :count], images[:, :count], lost
        if lost >= last / 2:
            quick = matrix
    return None


def krylov(gram: Callable[[Tensor], Tensor], matrix: Tensor, count: int, wide: int) -> tuple[Tensor, Tensor, Tensor]:
    """A start for `chebyshev`: Rayleigh-Ritz in the span of BLOCKS blocks X, G X, G^2 X ..., X random and the same for
    every weight (block Lanczos: Golub and Van Loan, Matrix Computations, 10.3).

    Returns: Z (n, wide), values (wide,), the residual G Z - Z diag(values).
    """
    n = matrix.shape[1]
    generator = torch.Generator().manual_seed(0)  # on the CPU: equal on every device

    def random() -> Tensor:
        return torch.randn(n, count, generator=generator).to(matrix.device)

    V, H = matrix.new_empty(n, BLOCKS * count), matrix.new_zeros(BLOCKS * count, BLOCKS * count)
    block = R = torch.linalg.qr(random()).Q
    for begin in range(0, BLOCKS * count, count):
        end = begin + count
        V[:, begin:end] = block
        known = V[:, :end]
        image = gram(block)
        inside = known.T @ image
        H[:end, begin:end], H[begin:end, :end] = inside, inside.T
        # An exhausted span leaves nothing but rounding; a random trace of that size keeps the next block full.
        rest = image - known @ inside + 1e-8 * inside.abs().max() * random()
        block, R = torch.linalg.qr(rest - known @ (known.T @ rest))
    values, turn = eigen(H)
    turn = turn[:, :wide].to(V)
    return V @ turn, values[:wide].double(), block @ (R @ turn[-count:])


def filter_degree(strongest: float, weakest: float, lost: float) -> tuple[int, bool]:
    """Degree of the filter that brings the energy lost to TOLERANCE, and whether that is to be expected of it.

    Args:    eigenvalues as multiples of the cut: the strongest, and the weakest that is sought.
    """
    far, near = (math.acosh(max(2 * x - 1, 1)) for x in (strongest, weakest))
    need = (math.log(max(lost / TOLERANCE, 1)) / 2 + 1) / max(near, NOTHING)  # energy is a square; cosh x = e^x / 2
    degree = max(1, min(math.ceil(need), int(math.log(CONTRAST) / max(far - near, NOTHING)), DEGREE))
    return degree, need <= degree and lost < 1e-2


def energy_lost(values: Tensor, residual: Tensor, count: int) -> float:
    """Share of its energy that a direction found lacks, the mean over all sought.

    A Ritz value with residual r lies below its eigenvalue by at most |r|, and by at most |r|^2 / gap, the gap being
    that to the eigenvalues that have no part in the block (Parlett, The Symmetric Eigenvalue Problem, 11.7). The
    block's last value stands for these, which makes it an estimate.

    Args:    values (wide,), residual G Z - Z diag(values) (n, wide).
    """
    r = residual[:, :count].norm(dim=0).to(values)
    found = values[:count]
    return float((r / found * (r / (found - values[-1]).clamp(min=1e-30)).clamp(max=1)).mean())


def eigen(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, strongest first, and vectors, on the CPU: a GPU is slow at small ones. What is below NOTHING of the
    strongest counts as that much."""
    values, vectors = torch.linalg.eigh(symmetric.cpu())
    return values.flip(-1).clamp(min=max(float(values[-1]) * NOTHING, 1e-30)), vectors.flip(-1)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are several times as fast there as in float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    able = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.10
    return device.type == "cpu" and bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def principal_angles(first: Tensor, second: Tensor) -> Tensor:
    """Cosines of the angles between two subspaces, largest first.

    Args:    first (n, r), second (n, s): orthonormal columns.
    Returns: (min(r, s),) in 0..1: 1 where a direction is shared, 0 where it is perpendicular.
    Raises:  ValueError: the columns live in spaces of different size.
    """
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second):
        raise ValueError(f"bases of one space must have equally many rows, got {first.shape} and {second.shape}")
    return torch.linalg.svdvals(first.T @ second).clamp(0, 1)


def coordinates(directions: Tensor, vectors: Tensor) -> Tensor:
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


def recompress(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The best pair of a lower rank, found without forming B A (Eckart-Young on the small core).

    With thin QRs B = P K and A^T = Q L, B A = P (K L^T) Q^T, so the SVD of the r x r core suffices.

    Args:    A (r, i), B (o, r); rank: 1..r.
    Returns: A' (rank, i) with orthonormal rows, B' (o, rank), and the kept share of |B A|^2 in
             0..1 (1 for a zero update).
    Raises:  ValueError: rank out of range, shapes that do not agree.
    """
    if A.ndim != 2 or B.ndim != 2 or len(A) != B.shape[1]:
        raise ValueError(f"a pair is A (r, i) and B (o, r), got {tuple(A.shape)} and {tuple(B.shape)}")
    if not 1 <= rank <= len(A):
        raise ValueError(f"rank must lie in 1..{len(A)} for a pair of rank {len(A)}, got {rank}")
    left, right = torch.linalg.qr(B), torch.linalg.qr(A.T)
    u, s, vh = torch.linalg.svd(left.R @ right.R.T, full_matrices=False)
    energy = s.double().square()
    kept = float(energy[:rank].sum() / energy.sum()) if energy.sum() > 0 else 1.0
    short = min(rank, len(s))
    new_A, new_B = vh[:short] @ right.Q.T, left.Q @ u[:, :short] * s[:short]
    return new_A, new_B, kept


def compress(dense: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The best pair of a rank for a dense update (Eckart-Young): B its leading output directions, A = B^T dense.

    Args:    dense (o, i); rank 1..min(o, i).
    Returns: A (rank, i), B (o, rank) with orthonormal columns, float32, and the kept share of |dense|^2 in 0..1 (1 for
             a zero update).
    Raises:  ValueError: as leading_subspace.
    """
    B = leading_subspace(dense, rank, "output")
    A = B.T @ dense.float()
    total = float(dense.double().square().sum())
    return A, B, min(float(A.double().square().sum()) / total, 1.0) if total else 1.0


def inner(A: Tensor, B: Tensor, other_A: Tensor, other_B: Tensor) -> float:
    """<B A, B' A'>, the sum of products of all entries of two updates, without forming either.

    Equals the sum of entries of (B^T B') * (A A'^T), two r x r' matrices.
    """
    return float(((B.T @ other_B) * (A @ other_A.T)).sum(dtype=torch.float64))


def is_finite(tensor: Tensor) -> bool:
    """No NaN and no infinity anywhere. One pass; a finite sum proves it, any other sum is looked into."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def _with_fixed_sign(columns: Tensor) -> Tensor:
    """A singular vector's sign is free: choose the entry of largest magnitude of each column positive."""
    largest = columns.gather(0, columns.abs().argmax(0, keepdim=True))
    return columns * torch.where(largest < 0, -1.0, 1.0)
