"""Adapters on live models: the update is B A, the base is never touched, and only what may learn learns."""

import math

import pytest
import torch
from torch import nn

import pico
import qrlora
from qrlora.adapter import Adapter, Header, Pair
from qrlora.initialisation_methods import METHODS, InitialFactors
from qrlora.injection import (
    adapter_names,
    applied,
    apply,
    detach,
    extract,
    initialise,
    set_layer_strengths,
    set_strengths,
    trainable_factors,
)
from qrlora.linalg import leading_subspace

LAYERS = {"a.to_q": (12, 10), "a.to_out.0": (10, 12), "b.to_q": (9, 10)}


class Toy(nn.Module):
    """Two branches of linear layers whose names are endings of each other."""

    def __init__(self):
        super().__init__()
        self.a = nn.ModuleDict({"to_q": nn.Linear(10, 12), "add_to_q": nn.Linear(10, 12)})
        self.a["to_out"] = nn.ModuleList([nn.Linear(12, 10)])
        self.b = nn.ModuleDict({"to_q": nn.Linear(10, 9)})

    def forward(self, x):
        y = self.a["to_out"][0](self.a["to_q"](x) + self.a["add_to_q"](x))
        return self.b["to_q"](torch.tanh(y))


def toy(dtype=torch.float32):
    torch.manual_seed(0)
    return Toy().to(dtype).requires_grad_(False)


def adapter(seed=0, rank=3, layers=LAYERS):
    generator = torch.Generator().manual_seed(seed)
    pairs = {
        name: Pair(A=torch.randn(rank, i, generator=generator), B=torch.randn(o, rank, generator=generator))
        for name, (o, i) in layers.items()
    }
    return Adapter(layers=pairs, header=Header(rank=rank))


def starts(model, method, rank=3):
    row = METHODS[method]
    result = {}
    for name in LAYERS:
        weight = model.get_submodule(name).weight
        Q = leading_subspace(weight, rank, row.side) if row.side else None
        result[name] = row.start(weight, Q, rank, torch.Generator().manual_seed(1))
    return result


def inputs():
    return torch.randn(5, 10, generator=torch.Generator().manual_seed(9))


def folded(model, pairs):
    """The reference: the same model with W + sum of strength B A written into its weights."""
    plain = toy()
    for one, strength in pairs:
        for name in one.layers:
            plain.get_submodule(name).weight += strength * one.dense(name)
    return plain(inputs())


def test_attaching_adds_the_update_to_each_weight():
    model, one, two = toy(), adapter(1), adapter(2, rank=2)
    apply(model, one, "one", 0.7)
    apply(model, two, "two", -0.4)
    torch.testing.assert_close(model(inputs()), folded(model, [(one, 0.7), (two, -0.4)]), rtol=1e-4, atol=1e-4)
    set_strengths(model, {"one": 0.2, "two": 1.0})
    torch.testing.assert_close(model(inputs()), folded(model, [(one, 0.2), (two, 1.0)]), rtol=1e-4, atol=1e-4)


def test_adapters_on_different_layers_act_together():
    first, *others = LAYERS
    model, one = toy(), adapter(1, layers={first: LAYERS[first]})
    two = adapter(2, layers={name: LAYERS[name] for name in others})
    apply(model, one, "one")
    apply(model, two, "two")
    torch.testing.assert_close(model(inputs()), folded(model, [(one, 1.0), (two, 1.0)]), rtol=1e-4, atol=1e-4)


def test_layers_may_differ_in_rank():
    one = adapter(1)
    mixed = Adapter(layers={**one.layers, "a.to_q": adapter(3, rank=7).layers["a.to_q"]}, header=one.header)
    model = toy()
    apply(model, mixed, "mixed")
    torch.testing.assert_close(model(inputs()), folded(model, [(mixed, 1.0)]), rtol=1e-4, atol=1e-4)


def test_base_weights_and_structure_are_as_before_after_detaching():
    model, reference = toy(), toy()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    apply(model, adapter(1), "one")
    apply(model, adapter(2, layers={"b.to_q": (9, 10)}), "two")
    detach(model, "one")
    assert adapter_names(model) == ["two"]
    torch.testing.assert_close(
        model(inputs()), folded(model, [(adapter(2, layers={"b.to_q": (9, 10)}), 1.0)]), rtol=1e-4, atol=1e-4
    )
    detach(model, "two")
    assert list(model.state_dict()) == list(weights)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in weights.items())
    assert torch.equal(model(inputs()), reference(inputs()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_a_fresh_start_is_the_base(method, dtype):
    """Bit for bit; what starts elsewhere than zero to rounding, since its update is B A - B_0 A_0."""
    model, x = toy(dtype), inputs().to(dtype)
    before = model(x)
    initialise(model, starts(model, method), "run")
    if method in ("qr-direct", "pissa", "olora"):
        torch.testing.assert_close(model(x), before, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)
    else:
        assert torch.equal(model(x), before)


@pytest.mark.parametrize("method", METHODS)
def test_only_the_learning_factor_learns(method):
    model = toy()
    first = starts(model, method)
    parameters = initialise(model, first, "run")
    trainable = {f"{name}.{factor}" for name, start in first.items() for factor in start.trainable}
    assert set(trainable_factors(model, "run")) == trainable
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in parameters}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    for _ in range(3):
        model(inputs()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {f"{name}.run" for name in trainable}


@pytest.mark.parametrize("method", METHODS)
def test_what_is_lifted_is_what_the_model_computed(method):
    """Train a little, lift, attach to a fresh base: the same outputs."""
    model = toy()
    parameters = initialise(model, starts(model, method), "run")
    for p in parameters:
        p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(5))
    lifted = extract(model, "run", Header(method=method, rank=3))
    assert lifted.rank == (6 if method in ("qr-direct", "pissa", "olora") else 3)
    fresh = toy()
    apply(fresh, lifted, "it")
    torch.testing.assert_close(fresh(inputs()), model(inputs()), rtol=1e-4, atol=1e-4)


def test_masked_entries_never_learn():
    model = toy()
    first = starts(model, "qr-triangular")
    parameters = initialise(model, first, "run")
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    for _ in range(3):
        model(inputs()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, pair in extract(model, "run", Header()).layers.items():
        mask = first[name].mask
        assert (pair.A[mask == 0] == 0).all() and (pair.A[mask == 1] != 0).any()


def test_a_frozen_input_basis_spares_memory():
    """Fact 3: with A frozen only x A^T (r numbers a row) is kept for the backward pass, not x (i numbers)."""

    def kept(method):
        layer = nn.ModuleDict({"to_q": nn.Linear(256, 256).requires_grad_(False)})
        weight = layer["to_q"].weight
        side = METHODS[method].side
        initialise(
            layer, {"to_q": METHODS[method].start(weight, leading_subspace(weight, 4, side) if side else None, 4)}, "x"
        )
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.update({t.data_ptr(): t.numel()}) or t, lambda t: t
        ):
            layer["to_q"](torch.randn(100, 256))
        weights = {p.data_ptr() for p in layer.parameters()}
        return sum(n for where, n in sizes.items() if where not in weights)

    assert kept("qr") == 100 * 4
    assert kept("lora") == 100 * 4 + 100 * 256


def test_adapters_are_worn_for_a_while_only():
    model = toy()
    before = model(inputs())
    apply(model, adapter(5), "mine", 0.0)
    with applied(model, [(adapter(1), 0.5), (adapter(2), 2.0)]) as names:
        assert adapter_names(model) == ["mine", *names]
        torch.testing.assert_close(
            model(inputs()), folded(model, [(adapter(1), 0.5), (adapter(2), 2.0)]), rtol=1e-4, atol=1e-4
        )
    assert adapter_names(model) == ["mine"]
    torch.testing.assert_close(model(inputs()), before)


def test_a_run_on_a_model_that_wears_an_adapter_learns_alone():
    model = toy()
    apply(model, adapter(1), "worn")
    reference = model(inputs())
    parameters = initialise(model, starts(toy(), "qr"), "run")
    assert torch.equal(model(inputs()), reference)
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in parameters}


def test_an_adapter_of_another_base_is_refused_with_layer_and_shapes():
    with pytest.raises(ValueError, match=r"a.to_q: the adapter is for a weight \(12, 11\), the base's is \(12, 10\)"):
        apply(toy(), adapter(layers={"a.to_q": (12, 11)}), "x")
    with pytest.raises(ValueError, match="no linear layer 'c.to_q'"):
        apply(toy(), adapter(layers={"c.to_q": (12, 11)}), "x")


def test_a_name_is_taken_once_and_an_unknown_one_is_refused():
    model = toy()
    apply(model, adapter(), "x")
    with pytest.raises(ValueError, match="'x' is on the model already"):
        apply(model, adapter(), "x")
    with pytest.raises(ValueError, match="no adapter named 'y' on the model; there are: x"):
        detach(model, "y")


def test_what_is_refused_leaves_the_adapter_that_is_trained_as_it_is():
    model, start = toy(), InitialFactors(torch.ones(2, 10), torch.zeros(12, 2), ("B",))
    learning = initialise(model, {"a.to_q": start}, "x")
    for wrong in (({"a.to_q": start}, "x"), ({"c.to_q": start}, "y"), ({"a.to_q": start}, "a.b")):
        with pytest.raises(ValueError):
            initialise(model, *wrong)
    assert all(p.requires_grad for p in learning)


def test_a_real_unet_takes_an_adapter_on_every_attention_layer():
    model = pico.unet()
    names = {n: m for n, m in model.named_modules() if n.endswith((".to_q", ".to_out.0"))}
    one = adapter(layers={n: (m.out_features, m.in_features) for n, m in names.items()})
    apply(model, one, "x")
    assert set(extract(model, "x", one.header).layers) == set(names)
    assert all(torch.equal(extract(model, "x", one.header).layers[n].A, one.layers[n].A) for n in names)


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if not row.needs_example])
def test_one_call_is_basis_start_and_learning_factors(method):
    """The front door gives what the rooms behind it give by hand, and its adapter is what the model computed."""
    import qrlora

    model, x = toy(), inputs()
    before = model(x)
    learning = qrlora.inject(model, targets="to_q, to_out.0", rank=3, method=method, seed=1)
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
    assert [p.shape for p in learning.parameters()] == [
        p.shape for p in initialise(toy(), starts(toy(), method), "hand")
    ]
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in learning.parameters()}
    sum(p.sum() for p in learning.parameters()).backward()
    torch.optim.SGD(learning.parameters(), lr=0.1).step()
    after, lifted = model(x), learning.extract(base="toy")
    assert (lifted.header.base, lifted.header.method, lifted.header.rank) == ("toy", method, 3)
    learning.detach()
    assert torch.equal(model(x), before) and torch.dist(after, before) > 1e-3
    torch.testing.assert_close(folded(model, [(lifted, 1.0)]), after, rtol=1e-4, atol=1e-4)


def test_the_old_name_of_inject_works_and_says_the_new_one():
    import qrlora

    with pytest.warns(DeprecationWarning, match="qrlora.inject"):
        assert qrlora.attach is qrlora.inject
    injected = qrlora.inject(torch.nn.Sequential(torch.nn.Linear(4, 4)), targets="0", rank=2)
    with pytest.warns(DeprecationWarning, match="extract"):
        assert injected.lift().layers.keys() == injected.extract().layers.keys()


def test_what_one_call_cannot_do_is_refused():
    from transformers.pytorch_utils import Conv1D

    import qrlora

    model = nn.ModuleDict({"c_attn": Conv1D(6, 4), "head": nn.Linear(4, 5)})
    with pytest.raises(ValueError, match=r"no linear layer ends in 'c_attn' \(what does is a Conv1D\)"):
        qrlora.inject(model, targets="c_attn", rank=2)
    with pytest.raises(ValueError, match="needs targets and a method, got 'head' and 'qrr'; methods: qr, "):
        qrlora.inject(model, targets="head", rank=2, method="qrr")
    with pytest.raises(ValueError, match="head: rank must lie in 1..4"):
        qrlora.inject(model, targets=["head"], rank=5)


@pytest.mark.parametrize(("method", "times"), [("qr", 1), ("qr-minor", 1), ("lora", 0), ("ortha", 0), ("pissa", 2)])
def test_weights_are_read_no_more_often_than_a_start_needs(method, times):
    """Once for directions, again where the start looks at numbers, and a few for the fingerprint."""
    import qrlora

    read, model = [], toy()

    def original(layer):
        read.append(layer)
        return model.get_submodule(layer).weight.detach()

    qrlora.inject(model, targets="to_q", rank=3, method=method, original=original)
    assert sorted(read) == sorted(["a.to_q", "b.to_q"] * (times + 1))  # so few that all are in the fingerprint


def test_a_quantised_module_learns_by_its_original_weights():
    quantization = pytest.importorskip("torchao.quantization")
    import qrlora

    model, full = toy(), toy()
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    with pytest.raises(ValueError, match="a.to_q is quantised: pass original="):
        qrlora.inject(model, targets="to_q", rank=3)
    before = model(inputs())
    one = qrlora.inject(model, targets="to_q", rank=3, original=lambda name: full.get_submodule(name).weight.detach())
    assert torch.equal(model(inputs()), before)
    assert one.header.basis == qrlora.inject(full, targets="to_q", rank=3).header.basis


class Attentive(torch.nn.Module):
    """torch's own attention and encoder layer, each with a linear layer beside."""

    def __init__(self):
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.encoder = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.decoder = torch.nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
        self.plain = torch.nn.Linear(8, 8)

    def forward(self, x):
        return self.plain(self.decoder(self.encoder(self.attention(x, x, x)[0]), x))


PASSED_BY = ("attention.out_proj", "encoder.linear1", "encoder.self_attn.out_proj", "decoder.multihead_attn.out_proj")


@pytest.mark.parametrize("layer", PASSED_BY)
def test_a_layer_that_torch_passes_by_is_refused_by_name(layer):
    from qrlora.injection.peft_methods import initialise_peft

    model = Attentive().eval()
    weight = model.get_submodule(layer).weight
    on_it = Adapter({layer: Pair(torch.ones(1, weight.shape[1]), torch.ones(len(weight), 1))}, Header())
    told = rf"{layer}: torch's (MultiheadAttention|TransformerEncoderLayer) .* passes the layer by"
    for put in (
        lambda: apply(model, on_it, "x"),
        lambda: qrlora.inject(model, targets=[layer], rank=1),
        lambda: initialise_peft(model, [layer], "dora", 1, 0),
    ):
        with pytest.raises(ValueError, match=told):
            put()
    assert not adapter_names(model)


def test_an_adapter_acts_in_every_other_layer_of_such_a_model():
    """With and without gradients, and where torch takes its fast path."""
    model, x = Attentive().eval(), torch.randn(2, 3, 8)
    for layer in ("plain", "decoder.linear1", "decoder.linear2"):
        weight = model.get_submodule(layer).weight
        on_it = Adapter({layer: Pair(torch.randn(1, weight.shape[1]), torch.randn(len(weight), 1))}, Header())
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients):
                before = model(x)
                with applied(model, [(on_it, 0.1)]):
                    assert torch.dist(model(x), before) > 1e-3


@pytest.mark.parametrize("strength", [math.nan, math.inf, -math.inf, 1e30, -1e30, torch.tensor([1.0, math.nan])])
def test_a_strength_that_cannot_be_meant_is_refused_and_leaves_nothing_behind(strength):
    model = Attentive()
    on_it = Adapter({"plain": Pair(torch.ones(1, 8), torch.ones(8, 1))}, Header())
    told = "must be finite numbers of at most 1000 in size, got"
    with pytest.raises(ValueError, match=told):
        apply(model, on_it, "x", strength)
    assert not adapter_names(model) and type(model.plain) is torch.nn.Linear
    apply(model, on_it, "x", -0.5)
    expected = model.plain(torch.ones(8))
    for change in (
        lambda: set_strengths(model, {"x": strength}),
        lambda: set_layer_strengths(model, "x", {"plain": strength}),
    ):
        with pytest.raises(ValueError, match=told):
            change()
        assert torch.equal(model.plain(torch.ones(8)), expected)
    if isinstance(strength, float):
        with pytest.raises(ValueError, match=told):
            on_it.scaled(strength)


def test_a_negative_strength_takes_the_update_away():
    model, x = Attentive(), torch.randn(5, 8)
    on_it = Adapter({"plain": Pair(torch.ones(1, 8), torch.ones(8, 1))}, Header())
    before = model.plain(x)
    with applied(model, [(on_it, -0.5)]):
        torch.testing.assert_close(model.plain(x), before - 0.5 * x.sum(1, keepdim=True))
