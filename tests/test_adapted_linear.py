"""The fast layer: PEFT's plain layers to rounding, no more kept than the mathematics needs, nothing left behind."""

import functools

import pytest
import torch
from torch import nn

import pico
import plain
from qrlora.adapter import Adapter, Header, Pair
from qrlora.families import SizeConditioning, open_base
from qrlora.initialisation_methods import METHODS
from qrlora.injection import adapter_names, applied, apply, detach, initialise, set_strengths, weight_folding
from qrlora.injection.adapted_linear import AdaptedLinear
from qrlora.linalg import leading_subspace
from qrlora.training import denoising_loss

WIDTH = 24


@functools.cache
def opened(family, dtype="float32"):
    return open_base(pico.folder(family), "cpu", dtype)


def starts(base, method, targets="attention", rank=4):
    row, generator = METHODS[method], torch.Generator().manual_seed(1)

    def start(weight):
        Q = leading_subspace(weight, rank, row.side) if row.side else None
        return row.start(weight, Q, rank, generator)

    return {name: start(weight) for name, weight in base.weights(targets)}


SUBTRACTED = ("qr-direct", "pissa", "olora")
"""Methods whose start is subtracted: their step 0 is the base to rounding."""


def trajectory(base, parameters, steps=10):
    """The losses of updates on drawn noise, and the factors after the last."""
    generator = torch.Generator().manual_seed(2)
    clean = pico.latents(base, 1, generator).expand(3, -1, -1, -1)
    condition = base.encode_prompt(["a <c>"] * 3, SizeConditioning.uncropped(16, 16))
    optimizer, losses = torch.optim.Adam(parameters, lr=1e-2), []
    for _ in range(steps):
        noise, time = pico.latents(base, 3, generator), base.noising.sample_time(3, generator)
        loss = denoising_loss(base.family.predict, base.model, base.noising, clean, noise, time, condition)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return torch.tensor(losses), torch.cat([p.detach().flatten() for p in parameters])


def our_trajectory(family, method, dtype):
    base = opened(family, dtype)
    ours = trajectory(base, initialise(base.model, starts(base, method), "run"))
    detach(base.model, "run")
    return ours


@functools.cache
def plain_trajectory(family, method, dtype):
    base = opened(family, dtype)
    theirs = trajectory(base, list(plain.initialise(base.model, starts(base, method)).values()))
    plain.detach(base.model)
    return theirs


@pytest.mark.parametrize(("method", "family"), pico.in_turn(METHODS, pico.BASES))
def test_ten_updates_are_those_of_plain_peft_layers(family, method):
    """Losses and factors to float32 rounding, which ten updates of Adam carry on."""
    losses, factors = our_trajectory(family, method, "float32")
    plain_losses, plain_factors = plain_trajectory(family, method, "float32")
    torch.testing.assert_close(losses, plain_losses, rtol=1e-4, atol=1e-6)
    assert losses[0] == plain_losses[0] or method in SUBTRACTED
    assert torch.dist(factors, plain_factors) < 2e-2 * factors.norm()


@pytest.mark.parametrize(("method", "family"), [*(("qr", family) for family in pico.BASES), ("qr-direct", "sdxl")])
def test_in_bfloat16_ten_updates_are_as_near_to_float32_as_plain_peft_layers_are(method, family):
    """The base rounds to bfloat16 all the time; that the adapter's products do so too adds nothing to speak of."""
    losses, _ = our_trajectory(family, method, "bfloat16")
    plain_losses, _ = plain_trajectory(family, method, "bfloat16")
    exact, _ = plain_trajectory(family, method, "float32")
    assert torch.dist(losses, exact) < 1.5 * torch.dist(plain_losses, exact) + 1e-3 * exact.norm()


@pytest.mark.parametrize("method", ["qr-direct", "pissa"])
def test_small_differences_of_large_terms_are_float32_in_bfloat16_too(method):
    """As plain PEFT layers have them; with products in bfloat16 the losses are 15 to 24 thousandths off."""
    losses, _ = our_trajectory("flux", method, "bfloat16")
    plain_losses, _ = plain_trajectory("flux", method, "bfloat16")
    torch.testing.assert_close(losses, plain_losses, rtol=0, atol=5e-3)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [5, 50])  # fewer than the inputs, and more: beside the weight, and formed with it
@pytest.mark.parametrize("trainable", ["B", "A", "AB"])
def test_gradients_are_those_of_the_formula(trainable, rows, bias):
    """x, A and B against float64 differences."""
    from torch.autograd import gradcheck

    from qrlora.injection.adapted_linear import LinearWithUpdate

    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (2, rows, WIDTH), "W": (9, WIDTH), "b": (9,), "A": (3, WIDTH), "B": (9, 3)}
    tensors = {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}
    x, W, b, A, B = tensors.values()
    for name in ["x", *trainable]:
        tensors[name].requires_grad_(True)
    assert gradcheck(LinearWithUpdate.apply, (x, W, b if bias else None, A, B))
    y = torch.nn.functional.linear(x, W + B @ A, b if bias else None)
    torch.testing.assert_close(LinearWithUpdate.apply(x, W, b if bias else None, A, B), y)


def kept(method, dtype, rows=100):
    """Numbers that a layer keeps of its rows for the backward pass."""
    model = nn.ModuleDict({"to_q": nn.Linear(256, 256).to(dtype)})
    row, weight = METHODS[method], model["to_q"].weight
    initialise(model, {"to_q": row.start(weight, leading_subspace(weight, 4, row.side) if row.side else None, 4)}, "x")
    sizes = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.update({t.data_ptr(): t.numel()}) or t, lambda t: t):
        model["to_q"](torch.randn(rows, 256, dtype=dtype, requires_grad=True))
    return sum(n for n in sizes.values() if n % rows == 0)


@pytest.mark.parametrize("rows", [99, 999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_the_rows_only_their_coordinates_are_kept(dtype, rows):
    """Fact 3: r numbers a row where A is frozen, and not x (i numbers); where B is frozen x alone."""
    assert kept("qr", dtype, rows) == rows * 4
    assert kept("qr-output", dtype, rows) == rows * 256
    assert kept("lora", dtype, rows) == rows * (4 + 256)


def model_of(dtype=torch.float32):
    torch.manual_seed(0)
    layers = {"first": nn.Linear(WIDTH, 16), "to_q": nn.Linear(16, 16)}
    return nn.Sequential(nn.ModuleDict(layers)["first"], nn.ModuleDict(layers)["to_q"]).to(dtype).requires_grad_(False)


def adapter(seed, shared=False, layers=(("0", WIDTH), ("1", 16)), rank=3):
    """Random; those with `shared` have one A."""
    generator, common = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)
    pairs = {
        name: Pair(
            A=torch.randn(rank, i, generator=common if shared else generator),
            B=torch.randn(16, rank, generator=generator) * 0.3,
        )
        for name, i in layers
    }
    return Adapter(pairs, Header(rank=rank))


def x_of(rows=7, b=3, dtype=torch.float32):
    return torch.randn(b, rows, WIDTH, generator=torch.Generator().manual_seed(4)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shared", [True, False])
def test_two_adapters_are_two_plain_peft_layers(shared, dtype):
    """Also after their strengths have changed; in half precision to its rounding."""
    model, reference, pairs = model_of(dtype), model_of(dtype), [(adapter(1, shared), 0.7), (adapter(2, shared), -0.4)]
    plain.apply(reference, pairs)
    apply(model, pairs[0][0], "one", 0.1)
    apply(model, pairs[1][0], "two", 3.0)
    set_strengths(model, {"one": 0.7, "two": -0.4})
    rough = {} if dtype == torch.float32 else {"rtol": 3e-2, "atol": 5e-2}
    torch.testing.assert_close(model(x_of(dtype=dtype)), reference(x_of(dtype=dtype)), **rough)
    with applied(model_of(dtype), pairs):
        torch.testing.assert_close(model(x_of(dtype=dtype)), reference(x_of(dtype=dtype)), **rough)


def test_adapters_of_one_basis_are_one_pair_and_others_are_stacked():
    for shared, rank in ((True, 3), (False, 6)):
        model = model_of()
        apply(model, adapter(1, shared), "one")
        apply(model, adapter(2, shared), "two")
        for strength in (0.5, torch.tensor([0.5, 2.0])):  # for the batch, or for each of its pictures
            set_strengths(model, {"one": strength})
            assert {len(m.sum_A) for m in model if isinstance(m, AdaptedLinear)} == {rank}


def test_a_small_difference_of_large_terms_keeps_its_digits_in_bfloat16():
    """A file of method qr-direct: [B, -B_0] [A; A_0] with B near B_0."""
    start, change = adapter(1).layers["0"], adapter(2).layers["0"].B * 1e-3
    pair = Pair(torch.cat([start.A, start.A]), torch.cat([start.B * 30 + change, -start.B * 30], 1))
    model = nn.Sequential(nn.Linear(WIDTH, 16)).bfloat16().requires_grad_(False)
    model[0].weight.zero_()
    model[0].bias.zero_()
    apply(model, Adapter({"0": pair}, Header(rank=6)), "it")
    x = x_of(dtype=torch.bfloat16)
    torch.testing.assert_close(model(x).float(), x.float() @ (change @ start.A).T, rtol=2e-2, atol=1e-4)


def test_a_frozen_A_is_kept_in_bfloat16_and_not_rounded_anew_in_every_pass():
    base = opened("flux", "bfloat16")
    for method, kept in (("qr", True), ("lora", False), ("qr-direct", False)):
        initialise(base.model, starts(base, method), "run")
        for layer in (m for m in base.model.modules() if isinstance(m, AdaptedLinear)):
            assert (layer.bfloat16_A is not None) == kept
            ((A, _, _),) = layer._active_pairs()[-1:]
            assert not kept or A is layer.bfloat16_A and torch.equal(A, layer.A["run"].bfloat16())
        detach(base.model, "run")


def test_libraries_find_on_a_layer_what_they_look_for_on_a_linear_one():
    """SDXL's pipeline reads the inputs of its first embedding layer, T5 a weight's dtype."""
    model, plain_one = model_of(), model_of()[0]
    apply(model, adapter(1), "it")
    assert (model[0].in_features, model[0].out_features) == (plain_one.in_features, plain_one.out_features)
    assert torch.equal(model[0].weight, plain_one.weight) and torch.equal(model[0].bias, plain_one.bias)


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("shared", [True, False])
def test_each_picture_of_a_batch_may_have_its_own_strengths(shared, copies):
    """Rows below each other, as classifier-free guidance puts them, get the same strengths again."""
    model, x = model_of(), x_of(b=3)
    one, two = adapter(1, shared), adapter(2, shared)
    apply(model, one, "one", torch.tensor([0.0, 0.5, 2.0]))
    apply(model, two, "two", torch.tensor([1.0, 0.0, -1.0]))
    together = model(torch.cat([x] * copies))
    for k, (a, b) in enumerate([(0.0, 1.0), (0.5, 0.0), (2.0, -1.0)]):
        set_strengths(model, {"one": a, "two": b})
        for copy in range(copies):
            torch.testing.assert_close(together[k + 3 * copy], model(x[k : k + 1])[0], rtol=1e-5, atol=1e-5)
    set_strengths(model, {"one": torch.ones(2)})
    with pytest.raises(ValueError, match="strengths for 2 images cannot act on a batch of 3 rows"):
        model(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_hundred_rounds_on_and_off_leave_the_very_same_bits(dtype):
    model = model_of(dtype)
    tensors, bits = dict(model.named_parameters()), {k: v.clone() for k, v in model.state_dict().items()}
    for seed in range(100):
        with applied(model, [(adapter(seed), 1.3), (adapter(seed + 1), 0.4)]) as names:
            assert model[0].weight.data_ptr() != tensors["0.weight"].data_ptr(), "it is folded"
            set_strengths(model, {names[0]: 0.2})
    assert {k: id(v) for k, v in model.named_parameters()} == {k: id(v) for k, v in tensors.items()}
    assert all(torch.equal(v, bits[k]) for k, v in model.state_dict().items())


def test_an_update_that_half_precision_would_lose_stays_beside_its_weight():
    """Folded while rounding takes at most a hundredth of it, by the norms in float64; smaller ones are not touched."""
    model, one = model_of(torch.bfloat16), adapter(1)
    W, D = (x.double() for x in (model[0].weight.detach(), one.layers["0"].B @ one.layers["0"].A))
    seen = set()
    for strength in (1e-4, 1e-2, 1.0, 10.0):
        lost = ((W + strength * D).bfloat16().double() - (W + strength * D)).norm() / (strength * D).norm()
        assert not 0.009 < lost < 0.011, "too close to call"
        with applied(model, [(one, strength)]):
            folded = not torch.equal(model[0].weight.double(), W)
            seen.add(folded)
            assert folded == (lost < 0.01)
            away = model(x_of(dtype=torch.bfloat16))
        reference = model_of()
        reference.load_state_dict(model.state_dict())
        with applied(reference, [(one, strength)]):
            exact = reference(x_of())
            assert torch.dist(away.float(), exact) < 0.01 * exact.norm()
    assert seen == {True, False}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e-6, 1e-3, 0.03, 1.0])
def test_what_rounding_would_take_is_told_from_norms_before_anything_is_formed(dtype, size, monkeypatch):
    """Beside the same, measured; in float16 also where numbers are so small that their steps no longer shrink."""
    measured = []
    for strength in (1e-3, 1e-2, 0.05, 0.2, 1.0, 10.0):
        W, A, B = (torch.randn(300, 200) * size).to(dtype), torch.randn(4, 200) * size, torch.randn(300, 4) * strength
        total = W.float() + B @ A
        lost = (total.to(dtype).float() - total).norm() / (B @ A).norm()
        measured.append((float(lost), W, A, B))
    monkeypatch.setattr(torch, "addmm", None)
    for lost, W, A, B in measured:
        if not 0.0093 < lost < 0.0107:  # too close to call
            assert weight_folding.rounding_is_negligible(W, A, B) == (lost < 0.01)


def test_an_update_stays_beside_its_weight_where_memory_runs_out(monkeypatch):
    """Some layers fold, the others do not; the answer is the same, and so is the base afterwards."""
    model, x, full = model_of(), x_of(), []

    def out_of_memory(*arguments):
        full.append(None)
        if len(full) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return addmm(*arguments)

    before, addmm = {k: id(v) for k, v in model.named_parameters()}, torch.addmm
    with applied(model, [(adapter(1), 0.8)]):
        expected = model(x)
    monkeypatch.setattr(torch, "addmm", out_of_memory)
    with applied(model, [(adapter(1), 0.8)]):
        assert sum(bool(layer._original_weight) for layer in model) == 1
        monkeypatch.setattr(torch, "addmm", addmm)
        torch.testing.assert_close(model(x), expected)
    assert {k: id(v) for k, v in model.named_parameters()} == before


def test_a_weight_that_is_folded_away_moves_with_its_layer():
    model = model_of()
    with applied(model, [(adapter(1), 0.8)]):
        model.to(torch.float64)
        assert all(layer._original_weight[0].dtype == torch.float64 for layer in model)
    assert all(p.dtype == torch.float64 for p in model.parameters())


@pytest.mark.parametrize("moment", ["attaching", "wearing"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_ctrl_c_or_an_error_restores_everything(monkeypatch, error, moment):
    model, before = model_of(), dict(model_of().named_parameters())
    layers, count = list(model), []

    def interrupted(self, *arguments):
        count.append(self)
        if len(count) == 4:  # the second layer of the second adapter
            raise error
        return put(self, *arguments)

    put = AdaptedLinear.add_update
    if moment == "attaching":
        monkeypatch.setattr(AdaptedLinear, "add_update", interrupted)
    with pytest.raises(error), applied(model, [(adapter(1), 1.0), (adapter(2), 1.0)]):
        raise error
    assert adapter_names(model) == [] and list(model) == layers
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_folded_or_beside_a_picture_is_the_same_and_strength_0_is_the_base():
    model, x = model_of(), x_of()
    base = model(x)
    with applied(model, [(adapter(1), 0.8)]):
        folded = model(x)
    apply(model, adapter(1), "it", 0.8)
    torch.testing.assert_close(model(x), folded)
    set_strengths(model, {"it": 0.0})
    assert torch.equal(model(x), base)
    with applied(model, [(adapter(1), 0.0)]):
        assert torch.equal(model(x), base)


def test_autocast_and_a_learning_base_take_the_plain_way():
    """What Beside cannot do is computed by ordinary operations, with all their gradients."""
    model = model_of()
    base = {name: layer for name, layer in model.named_children()}
    row = METHODS["lora"]
    generator = torch.Generator().manual_seed(0)
    initialise(model, {n: row.start(layer.weight, None, 2, generator) for n, layer in base.items()}, "run")
    with torch.autocast("cpu", torch.bfloat16):
        model(x_of()).float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    for layer in base.values():
        layer.requires_grad_(True)
    model(x_of()).square().mean().backward()
    assert all(layer.weight.grad.any() for layer in base.values())
