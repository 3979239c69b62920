"""Subspaces and pairs against float64 singular value decompositions."""

import functools
import math

import pytest
import torch

from qrlora import lanczos
from qrlora.linalg import (
    all_singular_vectors,
    is_finite,
    leading_subspace,
    least_squares_coordinates,
    principal_angles,
    subspace_and_lost_fraction,
    update_inner_product,
)

pytestmark = pytest.mark.usefixtures("with_and_without_fast_bfloat16")


def assert_orthonormal(q, atol=2e-7):
    """In float64, since the product in float32 may round by more than the columns do. Entries rounded to float32 move
    a product of columns by some 6e-8."""
    torch.testing.assert_close(q.double().T @ q.double(), torch.eye(q.shape[1], dtype=torch.float64), atol=atol, rtol=0)


def exact_subspace(weight, rank, side):
    u, _, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    return u[:, :rank] if side == "output" else vh[:rank].T


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("shape", [(48, 80), (80, 48), (32, 32)])
def test_the_leading_subspace_is_that_of_the_svd_strongest_first(shape, side):
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    found, exact = leading_subspace(weight, 8, side), exact_subspace(weight, 8, side)
    assert found.dtype == torch.float32 and found.shape == exact.shape
    assert_orthonormal(found)
    torch.testing.assert_close((found.double().T @ exact).abs(), torch.eye(8).double(), atol=1e-6, rtol=0)


def test_qr_of_the_weighted_singular_vectors_is_the_singular_vectors():
    """V_r S_r has orthogonal columns, so its QR gives Q = V_r up to signs: the whole of eq. 3-6 is this subspace."""
    weight = torch.randn(40, 60)
    _, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    q = torch.linalg.qr(vh[:6].T * s[:6]).Q
    torch.testing.assert_close((q.T @ leading_subspace(weight, 6).double()).abs(), torch.eye(6).double())


def test_the_sign_of_every_direction_is_fixed():
    weight = torch.randn(30, 50)
    for side in ("input", "output"):
        q = leading_subspace(weight, 5, side)
        assert all(q[q[:, k].abs().argmax(), k] > 0 for k in range(5))
        torch.testing.assert_close(leading_subspace(-weight, 5, side), q)


def test_a_weight_of_low_rank_still_gives_orthonormal_directions():
    weight = torch.randn(30, 2) @ torch.randn(2, 50)
    for side in ("input", "output"):
        for matrix in (weight, torch.zeros(50, 30)):
            q = leading_subspace(matrix, 6, side)
            assert_orthonormal(q)


SIZE = 800
"""Above LANCZOS_MIN_RATIO times 64 directions, so that block Lanczos is taken."""


NOISE = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0))
SPECTRA = {
    "power law over a bulk": lambda: NOISE @ NOISE.T @ NOISE * 1e-4 + NOISE,
    "Gaussian": lambda: NOISE,
    "half precision": lambda: NOISE.bfloat16(),
    "huge": lambda: NOISE * 1e30,
    "minute": lambda: NOISE * 1e-30,
    "forty of each": lambda: torch.kron(torch.eye(40), NOISE[:20, :20]),
    "all equal": lambda: torch.linalg.qr(NOISE).Q,
    "the identity": lambda: torch.eye(SIZE),
    "rank 70": lambda: NOISE[:, :70] @ NOISE[:70],
    "rank 1": lambda: torch.ones(SIZE, SIZE),
    "zero": lambda: torch.zeros(SIZE, SIZE),
}
"""Weights whose top singular values fall, or lie close, or are all equal, or end, or do not exist."""


@functools.cache
def best_of_spectrum(kind):
    """The squared Frobenius norm that the 64 best directions of a weight keep, from its singular values in float64."""
    return torch.linalg.svdvals(SPECTRA[kind]().double())[:64].square().sum()


@pytest.mark.parametrize("kind", SPECTRA)
def test_the_fast_way_keeps_the_energy_of_the_best_subspace_whatever_the_spectrum(kind):
    """Energy against singular values in float64; orthonormal columns to float32 rounding; twice the same bits."""
    weight = SPECTRA[kind]()
    q = leading_subspace(weight, 64)
    best = best_of_spectrum(kind)
    kept = (weight.double() @ q.double()).square().sum()
    assert kept >= 0.9999 * best
    assert_orthonormal(q)
    assert torch.equal(q, leading_subspace(weight, 64))
    assert torch.equal(q[:, :16], leading_subspace(weight, 16))


@pytest.mark.parametrize(("shape", "side"), [((SIZE, 900), "input"), ((900, SIZE), "output"), ((SIZE, 900), "output")])
def test_the_fast_way_finds_the_span_of_the_exact_one_on_either_side(shape, side):
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    cosines = principal_angles(leading_subspace(weight, 64, side), leading_subspace(weight, 64, side, exact=True))
    assert cosines.square().mean() > 0.999
    torch.testing.assert_close(
        principal_angles(leading_subspace(weight, 64, side, exact=True).double(), exact_subspace(weight, 64, side)),
        torch.ones(64).double(), atol=1e-6, rtol=0,
    )  # fmt: skip


def test_the_energy_that_is_lost_is_never_more_than_what_is_measured():
    """Against all eigenvectors, in float64; and the estimate is no idle one."""
    exact = all_singular_vectors(NOISE)[:, :64]
    found = lanczos.leading_singular_vectors(NOISE, NOISE.abs().max(), 64)
    assert found is not None
    directions, images, measured = found
    best, kept = ((NOISE.double() @ Z.double()).square().sum() for Z in (exact, directions))
    assert 1 - kept / best <= measured <= lanczos.TOLERANCE and measured < 10 * (1 - kept / best)
    assert principal_angles(directions, exact.float()).square().mean() > 0.999
    torch.testing.assert_close(images, NOISE @ directions / NOISE.abs().max(), atol=1e-3, rtol=1e-3)


LEFT, RIGHT = (torch.linalg.qr(NOISE[:n, :640]).Q for n in (700, 640))
"""Singular vectors of weights (700, 640), whose smaller side is above LANCZOS_MIN_RATIO times 64, too."""


def repeated(times, falls=0.97):
    """Singular values that come so many times each."""
    return falls ** (torch.arange(640) // times).float()


def over_a_bulk(*strong, bulk):
    return torch.cat([*strong, torch.linspace(bulk, 0, 640 - sum(map(len, strong)))])


def flat_bulk(many, bulk):
    """Two values alone: blocks of two steps span all that the first can reach, and what follows is rounding."""
    return torch.cat([torch.ones(many), torch.full((640 - many,), bulk)])


FLAT = [(34, 0.95), (34, 0.999), (40, 0.99), (64, 0.95), (65, 0.999), (100, 0.999)]
REPEATED = {
    **{f"each {times} times": repeated(times) for times in (2, 10, 32, 33, 40, 64, 65, 100, 640)},
    **{f"each {times} times, steep": repeated(times, 0.5) for times in (10, 40, 100)},
    "40 over a near bulk": over_a_bulk(torch.ones(40), bulk=0.95),
    "33 below eight that are stronger": over_a_bulk(torch.full((8,), 10.0), torch.ones(33), bulk=0.7),
    "48 nearly equal": over_a_bulk(torch.linspace(1.01, 1, 48), bulk=0.7),
    "100 nearly equal": over_a_bulk(torch.linspace(1.01, 1, 100), bulk=0.3),
    "40 and nothing": over_a_bulk(torch.ones(40), bulk=0),
    **{f"{many} over a flat bulk at {bulk}": flat_bulk(many, bulk) for many, bulk in FLAT},
    "93 and nothing": over_a_bulk(torch.ones(33), torch.full((60,), 0.98), bulk=0),
}
"""Singular values of which a block of 32 columns alone would never meet all."""


@functools.cache
def weight_and_best(kind, dtype):
    """A weight of these singular values, and the squared Frobenius norm that its 64 best directions keep."""
    weight = (LEFT * REPEATED[kind] @ RIGHT.T).to(dtype)
    return weight, torch.linalg.svdvals(weight.float())[:64].double().square().sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", REPEATED)
def test_no_direction_of_a_repeated_singular_value_is_overlooked(kind, dtype):
    """Energy of the best in 10,000th, on both sides; what is reported as lost is no less than what is."""
    weight, best = weight_and_best(kind, dtype)
    for matrix, side in ((weight, "output"), (weight.T, "output")):
        q, told = subspace_and_lost_fraction(matrix, 64, side)
        lost = float(1 - (q.T @ matrix.float()).double().square().sum() / best)
        assert lost <= 1e-4 and lost <= told + 2e-6
        assert_orthonormal(q)


@pytest.mark.parametrize(("many", "bulk"), FLAT)
def test_the_space_of_a_search_stays_orthonormal_where_it_is_exhausted(many, bulk):
    """No Ritz value is above the largest eigenvalue, which directions that are not orthonormal would give."""
    weight = LEFT * flat_bulk(many, bulk) @ RIGHT.T
    block = torch.linalg.qr(lanczos._random(weight[0], 32, 0)).Q
    empty = weight.new_empty(640, 0), weight.new_empty(0)
    Z, values = lanczos.block_lanczos_search(lambda X: weight.T @ (weight @ X), *empty, block, 64)
    assert values.max() < 1 + 1e-4
    torch.testing.assert_close(Z.T @ Z, torch.eye(Z.shape[1]), atol=1e-3, rtol=0)


def test_a_larger_rank_overlooks_none_either():
    """128 directions are sought with blocks of 64."""
    basis = torch.linalg.qr(torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))).Q
    values = 0.9 ** (torch.arange(1024) // 80).float()
    q, told = subspace_and_lost_fraction(basis * values @ basis.T, 100)
    lost = float(1 - (basis.T @ q * values[:, None]).double().square().sum() / values[:100].double().square().sum())
    assert lost <= 1e-4 and lost <= told + 2e-6


def test_a_direction_that_the_first_block_cannot_meet_is_found():
    """A singular vector orthogonal to the random columns with which the search begins: no power of the Gram matrix
    brings it in, but another random block does."""
    V = torch.linalg.qr(lanczos._random(torch.ones(640), 32, 0), mode="complete").Q
    values = torch.cat([torch.linspace(1, 0.5, 639), torch.tensor([1.4])])
    assert (leading_subspace(values[:, None] * V.T, 64).T @ V[:, -1]).norm() > 0.999


def test_a_weight_whose_directions_are_not_found_gets_all_eigenvectors(monkeypatch):
    monkeypatch.setattr(lanczos, "MAX_SEARCHES", 1)
    monkeypatch.setattr(lanczos, "TOLERANCE", 1e-14)
    assert lanczos.leading_singular_vectors(NOISE, NOISE.abs().max(), 64) is None
    found, lost = subspace_and_lost_fraction(NOISE, 64)
    assert lost == 0 and torch.equal(found, leading_subspace(NOISE, 64, exact=True))


def test_the_weak_among_steep_directions_are_found_too():
    """Energies from 1 to 4e-6 over a bulk of noise: float32 products see the weakest, though bfloat16 ones do not."""
    left, right = (torch.linalg.qr(NOISE[:, k : k + 200]).Q for k in (0, 200))
    weight = (left * torch.arange(1, 201) ** -1.5) @ right.T + NOISE * 1e-5
    cosines = principal_angles(leading_subspace(weight, 64), exact_subspace(weight, 64, "input").float())
    assert cosines.square().mean() > 0.999


def test_directions_far_below_a_few_are_found_too():
    """Eight directions 10,000 times above a bulk: rounding them to bfloat16 makes more noise than there is bulk."""
    left, right = (torch.linalg.qr(NOISE[:, k : k + 8]).Q for k in (0, 8))
    weight = NOISE / (2 * SIZE**0.5) + 1e4 * left @ right.T
    cosines = principal_angles(leading_subspace(weight, 64), exact_subspace(weight, 64, "input").float())
    assert cosines.square().mean() > 0.999


def test_another_dtype_of_the_base_turns_directions_but_hardly_their_span():
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.logspace(0, -2, 64))
    assert principal_angles(leading_subspace(weight, 8), leading_subspace(weight.bfloat16(), 8)).min() > 1 - 1e-4


@pytest.mark.parametrize(
    ("weight", "rank", "side", "message"),
    [
        (torch.ones(4, 3), 0, "input", r"1\.\.3 for shape \(4, 3\), got 0"),
        (torch.ones(4, 3), 4, "input", "got 4"),
        (torch.ones(4), 1, "input", r"shape \(4,\)"),
        (torch.ones(2, 2, 3, 3), 1, "input", "matrix"),
        (torch.ones(4, 3, dtype=torch.int64), 1, "input", "int64"),
        (torch.full((4, 3), math.nan), 1, "input", "NaN or infinity"),
        (torch.full((4, 3), math.inf), 1, "output", "NaN or infinity"),
        (torch.ones(4, 3), 1, "left", "'left'"),
    ],
)
def test_what_has_no_leading_subspace_is_refused(weight, rank, side, message):
    with pytest.raises(ValueError, match=message):
        leading_subspace(weight, rank, side)


def test_principal_angles_of_planes_at_a_known_angle():
    first = torch.eye(4)[:, :2]
    second = torch.stack([torch.eye(4)[0], math.cos(0.3) * torch.eye(4)[1] + math.sin(0.3) * torch.eye(4)[2]], 1)
    torch.testing.assert_close(principal_angles(first, second), torch.tensor([1.0, math.cos(0.3)]))
    with pytest.raises(ValueError, match="equally many rows"):
        principal_angles(first, torch.eye(3))


@pytest.mark.parametrize("seed", range(30))  # a dependent column is where a solver may be right by luck
@pytest.mark.parametrize("scale", [1.0, 0.0, 7.0])
def test_coordinates_give_the_nearest_vectors_also_in_scaled_or_dependent_directions(scale, seed):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(20, 4, generator=generator, dtype=torch.float64)).Q
    directions, vectors = basis.float() * scale, torch.randn(20, 3, generator=generator)
    if scale == 7.0:
        directions = torch.cat([directions, directions[:, :1]], 1)
    nearest = basis @ basis.T @ vectors.double() * (scale != 0)
    torch.testing.assert_close(
        (directions @ least_squares_coordinates(directions, vectors)).double(), nearest, atol=1e-5, rtol=0
    )


def test_the_inner_product_of_updates_needs_neither_update():
    A, B, C, D = torch.randn(3, 8), torch.randn(9, 3), torch.randn(5, 8), torch.randn(9, 5)
    assert update_inner_product(A, B, C, D) == pytest.approx(
        float(((B @ A).double() * (D @ C).double()).sum()), rel=1e-5
    )


def test_finite_numbers_are_finite_even_where_their_sum_is_not():
    assert is_finite(torch.full((4,), 3e38))
    assert not is_finite(torch.tensor([1.0, math.nan])) and not is_finite(torch.tensor([math.inf, -math.inf]))
