"""Where every method starts, against the paper's equations in float64."""

from pathlib import Path

import pytest
import torch

from qrlora.baselines import FUSIONS
from qrlora.basis import Basis, Weights
from qrlora.initial_directions import minor_directions, slot_directions
from qrlora.initialisation_methods import METHODS, DirectionSources
from qrlora.linalg import leading_subspace

W = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
RANK = 5


def start_of(name, weight=W, rank=RANK, seed=0):
    method = METHODS[name]
    Q = leading_subspace(weight, rank, method.side) if method.side else None
    return method.start(weight, Q, rank, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", METHODS)
def test_the_first_step_is_the_base(name):
    start = start_of(name)
    B_A = start.B @ start.A
    assert (start.A.shape, start.B.shape) == ((RANK, 16), (24, RANK))
    assert start.A.dtype == start.B.dtype == torch.float32
    assert torch.equal(B_A - (start.B @ start.A if start.subtract_start else 0), torch.zeros(24, 16))


@pytest.mark.parametrize("name", METHODS)
def test_the_count_of_trainable_numbers_is_that_of_the_start(name):
    start = start_of(name)
    learning = sum(getattr(start, factor).numel() for factor in start.trainable)
    if start.mask is not None:
        assert start.mask.shape == getattr(start, start.trainable[0]).shape
        learning = int(start.mask.sum())
    assert METHODS[name].trainable_parameters(24, 16, RANK) == learning


@pytest.mark.parametrize(("name", "side"), [("qr", "input"), ("qr-output", "output")])
def test_the_frozen_parts_cancel(name, side):
    """W_comp + Q (R + dR) = W + Q dR on either side: no residual weight and no R are needed."""
    start, weight = start_of(name), W.double() if side == "output" else W.double().T
    Q = (start.B if side == "output" else start.A.T).double()
    R = Q.T @ weight
    dR = torch.randn(R.shape, dtype=torch.float64)
    paper = (weight - Q @ R) + Q @ (R + dR)
    ours = weight + Q @ dR
    torch.testing.assert_close(paper, ours)
    assert start.trainable == (("A",) if side == "output" else ("B",))


@pytest.mark.parametrize("name", ["qr", "qr-direct"])
def test_the_frozen_directions_hold_the_best_low_rank_copy(name):
    u, s, vh = torch.linalg.svd(W.double())
    best = (u[:, :RANK] * s[:RANK]) @ vh[:RANK]
    A = start_of(name).A.double()
    torch.testing.assert_close(W.double() @ A.T @ A, best, atol=1e-5, rtol=1e-5)


def test_direct_starts_at_the_factors_of_the_core():
    u, s, vh = torch.linalg.svd(W.double())
    start = start_of("qr-direct")
    torch.testing.assert_close((start.B @ start.A).double(), (u[:, :RANK] * s[:RANK]) @ vh[:RANK], atol=1e-5, rtol=1e-5)
    assert start.trainable == ("A", "B") and start.subtract_start


def test_triangular_stands_on_the_axes_where_r_is_triangular():
    """B = Q of QR(W_core): Q^T W_core is upper triangular with a diagonal >= 0, and the mask has its shape."""
    start = start_of("qr-triangular")
    u, s, vh = torch.linalg.svd(W.double())
    exact = torch.linalg.qr((u[:, :RANK] * s[:RANK]) @ vh[:RANK])
    sign = torch.where(exact.R.diagonal() < 0, -1.0, 1.0)[:RANK]
    torch.testing.assert_close(start.B.double(), exact.Q[:, :RANK] * sign, atol=1e-5, rtol=0)
    R = start.B.double().T @ W.double()
    assert R.tril(-1).abs().max() < 1e-5 and (R.diagonal() >= 0).all()
    assert torch.equal(start.mask, torch.ones(RANK, 16).triu())


def test_triangular_axes_do_not_depend_on_the_basis_of_the_span():
    method, Q = METHODS["qr-triangular"], leading_subspace(W, RANK, "output")
    turned = Q @ torch.linalg.qr(torch.randn(RANK, RANK)).Q
    first, second = (method.start(W, x, RANK, None).B for x in (Q, turned))
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)


def test_lora_starts_as_peft_does():
    """Kaiming uniform with a = sqrt(5) is uniform in +-1/sqrt(i)."""
    start = start_of("lora", torch.zeros(8, 400), 100)
    assert start.A.abs().max() <= 400**-0.5 and start.A.std() == pytest.approx((3 * 400) ** -0.5, rel=0.02)
    assert torch.equal(start.A, start_of("lora", torch.zeros(8, 400), 100).A)
    assert not torch.equal(start.A, start_of("lora", torch.zeros(8, 400), 100, seed=1).A)


def test_a_bf16_base_starts_in_float32():
    for name in METHODS:
        start = start_of(name, W.bfloat16())
        assert start.A.dtype == start.B.dtype == torch.float32


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.side])
def test_missing_or_foreign_directions_are_refused(name):
    for Q in (None, torch.ones(7, RANK), torch.ones(24, RANK + 1)):
        with pytest.raises(ValueError, match=f"needs {RANK} leading"):
            METHODS[name].start(W, Q, RANK, None)


@pytest.mark.parametrize("size", [12, 15, 17, 40, 48])
def test_ortha_slots_of_layers_of_any_width_are_orthogonal(size):
    """And those of widths that are multiples of 16, as in all large models, are what they were in 0.2.0."""
    slots = torch.cat([slot_directions(size, 3, slot) for slot in range(size // 3)], 1).double()
    torch.testing.assert_close(slots.T @ slots, torch.eye(slots.shape[1]).double(), atol=1e-5, rtol=0)
    if size % 16 == 0:
        drawn_at_once = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).T
        axes = torch.linalg.qr(drawn_at_once)
        torch.testing.assert_close(slots, axes.Q * axes.R.diagonal().sign(), atol=1e-5, rtol=0)


def test_ortha_slots_are_blocks_of_one_orthogonal_basis():
    """A_i A_j^T = 0 for two slots and I for one, in whatever order they are asked for; a slot too many is refused."""
    A = [slot_directions(16, 5, slot).T.double() for slot in (2, 0, 1)]
    for k, first in enumerate(A):
        for m, second in enumerate(A):
            wanted = torch.eye(5) if k == m else torch.zeros(5, 5)
            torch.testing.assert_close(first @ second.T, wanted.double(), atol=1e-6, rtol=0)
    assert torch.equal(METHODS["ortha"].start(W, slot_directions(16, 5, 1), 5, None).A.double(), A[2])
    with pytest.raises(ValueError, match="16 inputs hold 3 slots of rank 5, got slot 3"):
        slot_directions(16, 5, 3)


def test_minor_directions_carry_what_the_leading_ones_leave():
    """|W Q|^2 is the sum of the r smallest eigenvalues of W^T W, or of those that are not zero where W is wide."""
    for weight in (W, W.T):
        Q = minor_directions(weight, RANK).double()
        eigenvalues = torch.linalg.eigvalsh(weight.double() @ weight.double().T).flip(0)[:16]
        torch.testing.assert_close(Q.T @ Q, torch.eye(RANK).double(), atol=1e-6, rtol=0)
        torch.testing.assert_close((weight.double() @ Q).square().sum(), eigenvalues[-RANK:].sum(), atol=1e-5, rtol=0)
        assert (leading_subspace(weight, 16 - RANK).double().T @ Q).abs().max() < 1e-6
    for wrong in (W * float("nan"), W[:4]):
        with pytest.raises(ValueError, match="needs finite numbers and a rank in"):
            minor_directions(wrong, RANK)


def test_pissa_shares_the_singular_values_evenly():
    """A_0 = sqrt(S_r) V_r^T and B_0 = U_r sqrt(S_r)."""
    u, s, vh = torch.linalg.svd(W.double())
    start = start_of("pissa")
    torch.testing.assert_close((start.A @ start.A.T).double(), torch.diag(s[:RANK]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close((start.B.T @ start.B).double(), torch.diag(s[:RANK]), atol=1e-4, rtol=1e-4)
    best = (u[:, :RANK] * s[:RANK]) @ vh[:RANK]
    torch.testing.assert_close((start.B @ start.A).double(), best, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "init"), [("pissa", "pissa"), ("olora", "olora")])
def test_pissa_and_olora_start_as_pefts_do(name, init):
    """The product that PEFT takes out of the base weight is ours; a factor's signs are free for PiSSA."""
    from peft import LoraConfig, get_peft_model

    model = torch.nn.Sequential(torch.nn.Linear(16, 24, bias=False))
    model[0].weight.data = W.clone()
    peft = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["0"], init_lora_weights=init))
    theirs = peft.base_model.model[0].get_delta_weight("default").detach()
    start = start_of(name)
    torch.testing.assert_close(start.B @ start.A, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["pissa", "olora", "qr-direct"])
def test_two_adapters_that_start_within_the_weight_do_not_count_it_twice(name):
    """W + sum_k (B_k A_k - B_0 A_0): untrained, their stack is the base; sum_k B_k A_k would add the core."""
    from qrlora.adapter import Adapter, Header, Pair
    from qrlora.merging import merge

    start = start_of(name)
    pair = Pair(torch.cat([start.A, start.A]), torch.cat([start.B, -start.B], 1))
    adapter = Adapter({"to_q": pair}, Header(method=name, rank=RANK))
    assert merge([adapter, adapter], (1, 1), "stack").dense("to_q").abs().max() < 1e-5
    assert (start.B @ start.A).abs().max() > 0.1


def test_a_method_says_itself_which_directions_it_starts_from():
    """Each row's `directions` gives the Q of its docstring, and reads no weight where none is needed."""
    W, read = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), []
    weights = Weights({"layer": (6, 8)}, lambda layer: read.append(layer) or W)
    marks = {side: torch.full((8, 2), float(side)) for side in (1, 2)}
    sources = DirectionSources(
        weights, 2, 1, lambda: Basis({"layer": marks[1]}, 2, "input"), lambda: {"layer": marks[2]}
    )

    def Q(method):
        return METHODS[method].directions(sources).Q["layer"]

    assert Q("qr") is marks[1] and Q("pissa") is marks[1] and Q("qr-contrast") is marks[2]
    assert torch.equal(Q("ortha"), slot_directions(8, 2, 1)) and not read
    assert torch.equal(Q("qr-minor"), minor_directions(W, 2)) and read == ["layer"]
    assert [name for name, row in METHODS.items() if row.needs_example] == ["qr-contrast"]


def test_a_method_that_comes_from_a_page_of_ours_is_named_on_that_page():
    for method in (*METHODS.values(), *FUSIONS.values()):
        if method.paper.startswith("docs/"):
            page = Path(__file__).parents[1] / method.paper
            assert f"`{method.name}`" in page.read_text("utf-8"), method
