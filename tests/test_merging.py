"""Merges against float64 sums of dense updates."""

import math
from dataclasses import replace

import pytest
import torch

from qrlora.adapter import Adapter, Header, Pair
from qrlora.files import load, save
from qrlora.initialisation_methods import METHODS
from qrlora.linalg import leading_subspace
from qrlora.merging import RULES, merge

LAYERS = {"a.attn1.to_q": (20, 16), "a.attn1.to_k": (12, 16), "b.attn1.to_out.0": (16, 16)}


def base(seed=0, noise=0.0):
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer, (o, i) in LAYERS.items():
        # a gap after the fifth singular value, so that a slightly different base has nearly the same subspace
        u, s, vh = torch.linalg.svd(torch.randn(o, i, generator=generator), full_matrices=False)
        s = torch.cat([s[:5] + 5, s[5:]])
        weights[layer] = (u * s) @ vh + noise * torch.randn(o, i, generator=torch.Generator().manual_seed(9))
    return weights


def trained(method, seed, weights=None, rank=5, layers=tuple(LAYERS), **header):
    """An adapter as a run of the method leaves it: its start, and random numbers where it learns."""
    weights, row = weights or base(), METHODS[method]
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for layer in layers:
        Q = leading_subspace(weights[layer], rank, row.side) if row.side else None
        start = row.start(weights[layer], Q, rank, generator)
        factors = {"A": start.A, "B": start.B}
        for name in start.trainable:
            change = torch.randn(factors[name].shape, generator=generator)
            factors[name] = factors[name] + change * (1 if start.mask is None else start.mask)
        pairs[layer] = Pair(**factors)
        if start.subtract_start:
            pairs[layer] = Pair(torch.cat([factors["A"], start.A]), torch.cat([factors["B"], -start.B], 1))
    return Adapter(pairs, Header(method=method, rank=rank, family="sdxl", component="unet", **header))


def exact_sum(adapters, weights, layer):
    return sum(
        w * x.layers[layer].B.double() @ x.layers[layer].A.double()
        for w, x in zip(weights, adapters, strict=True)
        if layer in x.layers
    )


def assert_is_the_sum(merged, adapters, weights, tolerance=1e-5):
    for layer in {layer for x in adapters for layer in x.layers}:
        exact = exact_sum(adapters, weights, layer)
        torch.testing.assert_close(merged.dense(layer).double(), exact, atol=tolerance * 10, rtol=tolerance)


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.frozen_side])
@pytest.mark.parametrize("weights", [(1, 1), (0.7, 0.4), (-1, 0), (1, 0.5, 2)])
def test_adapters_of_one_basis_add_at_their_rank(method, weights):
    adapters = [trained(method, seed, basis="d") for seed in range(len(weights))]
    merged = merge(adapters, weights)
    assert_is_the_sum(merged, adapters, weights)
    assert merged.rank == 5 and merged.header.method == method and merged.header.basis == "d"
    assert [parent["kept_energy"] for parent in merged.header.parents] == [1.0] * len(weights)
    side = METHODS[method].frozen_side
    first = adapters[0].layers["a.attn1.to_k"].directions(side)
    assert torch.equal(merged.layers["a.attn1.to_k"].directions(side), first)


@pytest.mark.parametrize("method", METHODS)
def test_a_stack_is_exact_for_every_method(method):
    adapters = [trained(method, 1), trained("lora", 2, rank=3), trained("qr", 3, base(5))]
    merged = merge(adapters, (0.7, -0.4, 1), rule="stack")
    assert_is_the_sum(merged, adapters, (0.7, -0.4, 1))
    assert merged.rank == sum(x.rank for x in adapters) and merged.header.method == "stack"
    assert_is_the_sum(merge([merged, adapters[0]], (2, 1), rule="stack"), [merged, adapters[0]], (2, 1))


@pytest.mark.parametrize("method", ["qr", "qr-output", "qr-triangular"])
def test_nearly_equal_bases_are_re_expressed_in_the_first(method):
    """Loading a base in another dtype or on another machine turns Q within nearly the same span."""
    adapters = [trained(method, 1), trained(method, 2, base(noise=0.03))]
    merged = merge(adapters, (1, 0.5))
    kept = merged.header.parents[1]["kept_energy"]
    assert 0.99 < kept < 0.99999 and merged.header.parents[0]["kept_energy"] == 1
    lost = math.sqrt(1 - kept) * math.sqrt(sum(pair.squared_norm for pair in adapters[1].layers.values()))
    missing = sum((merged.dense(x).double() - exact_sum(adapters, (1, 0.5), x)).square().sum() for x in LAYERS)
    assert math.sqrt(missing) == pytest.approx(0.5 * lost, rel=0.05)


def test_the_same_span_in_other_coordinates_loses_nothing():
    first, second = trained("qr", 1, basis="d"), trained("qr", 2, basis="e")
    turn = torch.linalg.qr(torch.randn(5, 5)).Q
    turned = Adapter({x: Pair(turn @ p.A, p.B @ turn.T) for x, p in second.layers.items()}, second.header)
    merged = merge([first, turned], (1, 1))
    assert_is_the_sum(merged, [first, second], (1, 1))
    assert merged.header.parents[1]["kept_energy"] > 1 - 1e-6 and merged.header.basis == ""


def test_a_lower_rank_of_one_base_fits_into_the_higher():
    for order in ((2, 5), (5, 2)):
        adapters = [trained("qr", seed, rank=rank) for seed, rank in enumerate(order)]
        merged = merge(adapters, (1, 1))
        assert_is_the_sum(merged, adapters, (1, 1))
        assert merged.rank == merged.header.rank == 5


def test_output_and_triangular_share_a_span():
    adapters = [trained("qr-triangular", 1), trained("qr-output", 2)]
    merged = merge(adapters, (1, 1))
    assert_is_the_sum(merged, adapters, (1, 1))
    assert merged.header.method == "qr-output"


def test_layers_of_one_adapter_alone_are_kept():
    names = list(LAYERS)
    adapters = [trained("qr", 1, layers=names[:2]), trained("qr", 2, layers=names[1:])]
    for rule in ("sum", "stack"):
        merged = merge(adapters, (0.5, 2), rule)
        assert set(merged.layers) == set(LAYERS)
        assert_is_the_sum(merged, adapters, (0.5, 2))


def test_a_single_adapter_can_be_merged_and_the_inputs_stay_as_they_were():
    adapter = trained("qr", 1)
    before = {layer: pair.B.clone() for layer, pair in adapter.layers.items()}
    assert_is_the_sum(merge([adapter], [3]), [adapter], [3])
    merge([adapter, adapter], [1, 2])
    assert all(torch.equal(adapter.layers[layer].B, B) for layer, B in before.items())


def test_an_untrained_adapter_merges():
    zero = trained("qr", 1, base(5)).scaled(0.0)
    assert merge([trained("qr", 2), zero], (1, 1)).header.parents[1]["kept_energy"] == 1.0


def test_scaled_and_merged_adapters_merge_again():
    for method in ("qr", "qr-output"):
        first, second = trained(method, 1), trained(method, 2)
        merged = merge([first.scaled(0.5), merge([first, second], (1, 1))], (1, 2))
        assert_is_the_sum(merged, [first, second], (2.5, 2))


def test_the_header_tells_where_a_merge_comes_from():
    first = trained("qr", 1, trigger="<c>", role="content", targets="self", fingerprint={"x": 1.0})
    second = trained("qr", 2, trigger="<s>", role="style", targets="self", base="tiny", fingerprint={"y": 2.0})
    header = merge([first, second], (1, 0.5)).header
    assert (header.role, header.trigger, header.targets, header.base) == ("merged", "<c>, <s>", "self", "tiny")
    assert header.fingerprint == {"x": 1.0, "y": 2.0}
    assert [(x["trigger"], x["weight"]) for x in header.parents] == [("<c>", 1.0), ("<s>", 0.5)]
    assert Header.from_json(header.to_json()) == header


def test_merges_of_merges_name_each_source_once_with_its_weight_in_the_sum():
    """Compared with the dense sum at those weights; the same adapter in two files is one source, another is another."""
    first, second = trained("qr", 1, trigger="<c>", targets="self"), trained("qr", 2, trigger="<s>", targets="self")
    third = trained("qr", 3, trigger="<s>", targets="self")  # a header equal to the second's, other numbers
    inner = merge([first, second], (1, 0.5))
    again = merge([merge([inner, third], (2, -1)), first, inner], (0.5, 3, 1))
    sources = again.header.parents
    assert [(x["trigger"], x["weight"]) for x in sources] == [("<c>", 5.0), ("<s>", 1.0), ("<s>", -0.5)]
    assert_is_the_sum(again, [first, second, third], [x["weight"] for x in sources])
    assert not any(x["parents"] for x in sources) and again.header.trigger == "<c>, <s>"
    assert again.header.config["weights"] == [0.5, 3, 1] and Header.from_json(again.header.to_json()) == again.header


def test_the_header_of_a_merge_of_merges_of_merges_stays_as_large_as_its_sources(tmp_path):
    """Fifty times over, each with itself and a merge before it; the file is read back, its weights are the sum's."""
    first, second = trained("qr", 1, trigger="<c>", targets="a"), trained("qr", 2, trigger="<s>", targets="b")
    before, merged = first, merge([first, second], (0.5, 0.5))
    sizes = []
    for _ in range(50):
        before, merged = merged, merge([merged, merged, before], (0.25, 0.25, 0.5))
        sizes.append(len(merged.header.to_json()))
    assert max(sizes) - min(sizes) < 200  # digits of the weights
    save(merged, tmp_path / "x.safetensors", keys="diffusers")
    found = load(tmp_path / "x.safetensors")
    assert found.header == merged.header and len(found.header.parents) == 2
    assert sum(x["weight"] for x in found.header.parents) == pytest.approx(1)
    assert_is_the_sum(found, [first, second], [x["weight"] for x in found.header.parents])
    merge([found, first], (1, 1))


def test_a_header_of_merges_within_merges_as_files_of_before_hold_is_read_and_made_flat():
    first, second = trained("qr", 1, trigger="<c>"), trained("qr", 2, trigger="<s>")

    def nested(header, *parents):
        told = [{**x.entries(), "parents": list(x.parents), "weight": w, "kept_energy": kept} for x, w, kept in parents]
        return replace(header, role="merged", parents=tuple(told))

    inner = nested(first.header, (first.header, 1.0, 1.0), (second.header, 0.5, 0.9))
    outer = nested(first.header, (inner, 2.0, 0.5), (first.header, 1.0, None))
    read = Header.from_json(outer.to_json())
    assert read == outer
    flat = merge([Adapter(first.layers, read)], (3,)).header.parents
    assert [(x["trigger"], x["weight"]) for x in flat] == [("<c>", 9.0), ("<s>", 3.0)]
    assert [x["kept_energy"] for x in flat] == [None, pytest.approx(0.45)]
    deep = outer.to_json().replace('"parents": []', '"parents": ' + "[" * 100_000 + "]" * 100_000, 1)
    with pytest.raises(ValueError, match="header is not readable"):
        Header.from_json(deep)


def test_another_base_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"holds only \d.*of an adapter's update.*, or merge with rule='stack'"):
        merge([trained("qr", 1), trained("qr", 2, base(5))], (1, 1))
    fingerprints = {"fingerprint": {"a": 1.0}, "base": "one"}, {"fingerprint": {"a": 1.1}, "base": "two"}
    adapters = [trained("qr", seed, **header) for seed, header in enumerate(fingerprints)]
    for rule in RULES:
        with pytest.raises(ValueError, match="different base models, 'one' and 'two'"):
            merge(adapters, (1, 1), rule)


def test_other_shapes_and_families_are_refused():
    small = Adapter({"a.attn1.to_q": Pair(torch.ones(2, 8), torch.ones(9, 2))}, Header(method="qr"))
    with pytest.raises(ValueError, match=r"base models differ, .*\(20, 16\) and \(9, 8\) in a.attn1.to_q"):
        merge([trained("qr", 1), small], (1, 1), "stack")
    other = Adapter(trained("qr", 1).layers, Header(method="qr", family="flux", component="transformer"))
    with pytest.raises(ValueError, match="different family: 'sdxl' and 'flux'"):
        merge([trained("qr", 1), other], (1, 1))


@pytest.mark.parametrize("methods", [("lora", "lora"), ("qr", "lora"), ("qr", "qr-output"), ("qr-direct", "qr-direct")])
def test_methods_without_a_common_frozen_factor_are_sent_to_the_stack(methods):
    adapters = [trained(method, seed) for seed, method in enumerate(methods)]
    with pytest.raises(ValueError, match="do not share; use rule='stack'"):
        merge(adapters, (1, 1))


@pytest.mark.parametrize(
    ("count", "weights", "rule", "message"),
    [
        (0, (), "sum", "0 adapters"),
        (2, (1,), "sum", "2 adapters"),
        (2, (1, math.nan), "sum", "finite"),
        (2, (1, math.inf), "stack", "finite"),
        (2, (1, 1), "linear", "'linear'; choose one of sum, stack"),
    ],
)
def test_senseless_merges_are_refused(count, weights, rule, message):
    with pytest.raises(ValueError, match=message):
        merge([trained("qr", seed) for seed in range(count)], weights, rule)


def dense(adapter, layer, weight=1.0):
    return weight * adapter.layers[layer].B.double() @ adapter.layers[layer].A.double()


def cut(matrix, rank):
    u, s, vh = torch.linalg.svd(matrix)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def test_plain_is_pefts_linear_merge_and_not_the_sum():
    """Cross terms: for adapters of one frozen factor the update is exactly twice the sum."""
    from peft import LoraConfig, get_peft_model

    adapters, weights = [trained("lora", seed, layers=["a.attn1.to_q"]) for seed in (1, 2)], (0.7, -0.4)
    model = torch.nn.Sequential(torch.nn.Linear(16, 20, bias=False))
    peft = get_peft_model(model, LoraConfig(r=5, lora_alpha=5, target_modules=["0"]), "x0")
    peft.add_adapter("x1", LoraConfig(r=5, lora_alpha=5, target_modules=["0"]))
    layer = peft.base_model.model[0]
    for k, adapter in enumerate(adapters):
        layer.lora_A[f"x{k}"].weight.data = adapter.layers["a.attn1.to_q"].A
        layer.lora_B[f"x{k}"].weight.data = adapter.layers["a.attn1.to_q"].B
    peft.add_weighted_adapter(["x0", "x1"], list(weights), "both", combination_type="linear")
    ours = merge(adapters, weights, "peft-linear")
    torch.testing.assert_close(ours.dense("a.attn1.to_q"), layer.get_delta_weight("both").detach())
    assert ours.rank == 5 and ours.header.parents[0]["kept_energy"] is None
    shared = [trained("qr", seed) for seed in (1, 2)]
    twice = merge(shared, (1, 1), "peft-linear")
    for name in LAYERS:
        torch.testing.assert_close(twice.dense(name).double(), 2 * exact_sum(shared, (1, 1), name), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="the ranks are 5 and 3; use rule='stack'"):
        merge([trained("lora", 1), trained("lora", 2, rank=3)], (1, 1), "peft-linear")


@pytest.mark.parametrize("rule", ["ties", "dare"])
def test_ties_and_dare_work_on_the_updates_and_say_what_the_cut_lost(rule):
    """Against PEFT's merging of the dense updates, and DARE against its equation with the same draws."""
    from peft.utils.merge_utils import ties

    adapters = [trained("lora", seed) for seed in (1, 2)]
    merged = merge(adapters, (1, 1), rule)
    generator = torch.Generator().manual_seed(0)
    lost = total = 0.0
    for layer in LAYERS:
        updates = [dense(x, layer).float() for x in adapters]
        if rule == "ties":
            whole = ties(updates, torch.ones(2), density=0.2).double()
        else:
            kept = torch.rand(2, *updates[0].shape, generator=generator) >= 0.9
            whole = (torch.stack(updates) * kept * 10).sum(0).double()
        best = cut(whole, 10)
        torch.testing.assert_close(merged.dense(layer).double(), best, atol=1e-3, rtol=1e-3)
        lost, total = lost + float((whole - best).square().sum()), total + float(whole.square().sum())
    config = merged.header.config
    assert config["truncation_error"] == pytest.approx((lost / total) ** 0.5, rel=1e-3)
    assert merged.rank == 10 and merged.header.method == rule
    assert config["density" if rule == "ties" else "drop"] == {"ties": 0.2, "dare": 0.9}[rule]


def test_dare_is_the_sum_on_average():
    from qrlora.merging.ties_dare_knots import dare

    adapters = [trained("lora", seed, layers=["b.attn1.to_out.0"], rank=12) for seed in (1, 2)]
    merges = [dare(adapters, (0.5, 1.0), seed=k).layers["b.attn1.to_out.0"] for k in range(600)]
    mean = torch.stack([pair.B @ pair.A for pair in merges]).mean(0).double()
    exact = exact_sum(adapters, (0.5, 1.0), "b.attn1.to_out.0")
    assert torch.dist(mean, exact) < 0.25 * exact.norm()  # sqrt(9 / 600) of an entry, and no bias
    assert torch.equal(merges[3].A, dare(adapters, (0.5, 1.0), seed=3).layers["b.attn1.to_out.0"].A)


def test_knots_is_ties_in_the_common_space_at_the_sum_of_the_ranks():
    """[dW_1, dW_2] = U S [V_1, V_2], merged on S V_k, against the dense SVD in float64."""
    adapters, weights = [trained("lora", 1), trained("lora", 2, rank=3)], (1.0, 0.5)
    merged = merge(adapters, weights, "knots")
    assert merged.rank == 8
    for layer in LAYERS:
        updates = [dense(x, layer) for x in adapters]
        u, s, vh = torch.linalg.svd(torch.cat(updates, 1), full_matrices=False)
        rank = int((s > 1e-5 * s[0]).sum())
        tasks = [u[:, :rank].T @ x for x in updates]  # the sign of a row is free: ties treats both alike
        parts = []
        for task, weight in zip(tasks, weights, strict=True):
            least = task.abs().flatten().topk(int(0.2 * task.numel())).values[-1]
            parts.append(weight * torch.where(task.abs() >= least, task, 0.0))
        sign = sum(parts).sign()
        agree = [(x.sign() == sign) & (x != 0) for x in parts]
        mean = sum(x * y for x, y in zip(parts, agree, strict=True)) / sum(agree).clamp_min(1)
        torch.testing.assert_close(merged.dense(layer).double(), u[:, :rank] @ mean, atol=1e-3, rtol=1e-3)


def test_rules_on_the_updates_take_layers_of_one_adapter_alone_and_zeros():
    names = list(LAYERS)
    for rule in ("ties", "dare", "knots"):
        adapters = [trained("lora", 1, layers=names[:2]), trained("lora", 2, layers=names[1:])]
        assert set(merge(adapters, (1, 1), rule).layers) == set(LAYERS)
        nothing = merge([x.scaled(0.0) for x in adapters], (1, 1), rule)
        assert all(float(nothing.dense(layer).abs().max()) == 0 for layer in LAYERS)
