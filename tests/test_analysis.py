"""Rows about adapters against dense float64 arithmetic."""

import math

import pytest
import torch

import full_size
import qrlora
from qrlora.adapter import Adapter, Header, Pair
from qrlora.analysis import interference, similarity, trainable_parameters, update_norms
from qrlora.linalg import principal_angles
from qrlora.merging import merge
from test_adapter import adapter_of


def test_norms_are_those_of_the_dense_updates():
    adapter = adapter_of()
    norms = {layer: float(adapter.dense(layer).double().norm()) for layer in adapter.layers}
    total = sum(x * x for x in norms.values())
    for row in update_norms(adapter):
        assert row.norm == pytest.approx(norms[row.layer], rel=1e-5)
        assert row.share == pytest.approx(norms[row.layer] ** 2 / total, rel=1e-5)
    assert all(row.norm == row.share == 0 for row in update_norms(adapter.scaled(0.0)))


@pytest.mark.parametrize("ranks", [(3, 3), (2, 4)])
def test_similarity_is_that_of_the_dense_updates(ranks):
    first, second = (adapter_of(r=rank, seed=seed) for seed, rank in enumerate(ranks))
    for row in similarity(first, second):
        a, b = (x.layers[row.layer] for x in (first, second))
        x, y = (pair.B.double() @ pair.A.double() for pair in (a, b))
        assert row.update == pytest.approx(float((x * y).sum() / x.norm() / y.norm()), abs=1e-5)
        assert row.first_norm == pytest.approx(float(x.norm()), rel=1e-5)
        assert row.second_norm == pytest.approx(float(y.norm()), rel=1e-5)
        trained = float((a.B * b.B).sum() / a.B.norm() / b.B.norm()) if ranks[0] == ranks[1] else math.nan
        assert row.trained == pytest.approx(trained, abs=1e-5, nan_ok=True)
        for overlap, side in ((row.input_overlap, "input"), (row.output_overlap, "output")):
            spans = [torch.linalg.qr(pair.directions(side)).Q for pair in (a, b)]
            assert overlap == pytest.approx(float(principal_angles(*spans).square().mean()), abs=1e-4)


def test_interference_is_that_of_the_dense_updates_as_wholes():
    first, second = adapter_of(r=3), adapter_of(r=2, seed=1)
    updates = [{layer: x.dense(layer).double() for layer in x.layers} for x in (first, second)]
    norms = [sum(float(u.square().sum()) for u in each.values()) ** 0.5 for each in updates]
    pairs = [(updates[0][layer], updates[1][layer]) for layer in updates[0]]
    met, whole = interference(first, second), norms[0] * norms[1]
    assert met.cosine == pytest.approx(sum(float((x * y).sum()) for x, y in pairs) / whole, abs=1e-5)
    assert met.read_together == pytest.approx(sum(float((x @ y.T).norm()) for x, y in pairs) / whole, abs=1e-5)
    assert met.written_together == pytest.approx(sum(float((x.T @ y).norm()) for x, y in pairs) / whole, abs=1e-5)
    rows = similarity(first, second)
    overlap = sum(row.input_overlap * row.first_norm * row.second_norm for row in rows) / whole
    assert met.input_overlap == pytest.approx(overlap, abs=1e-5)


def test_adapters_on_different_layers_do_not_interfere_and_a_zero_one_has_no_answer():
    adapter = adapter_of()
    layers = list(adapter.layers)
    apart = (adapter.select(lambda layer: layer == layers[0]), adapter.select(lambda layer: layer != layers[0]))
    assert interference(*apart) == (0, 0, 0, 0, 0)
    assert interference(adapter, adapter).cosine == pytest.approx(1, abs=1e-5)
    assert all(map(math.isnan, interference(adapter, adapter.scaled(0.0))))


def test_an_adapter_is_like_itself_and_unlike_its_opposite():
    adapter = adapter_of()
    for row in similarity(adapter, adapter):
        assert row[1:5] == pytest.approx((1, 1, 1, 1), abs=1e-5)
    assert similarity(adapter, adapter.scaled(-2))[0].update == pytest.approx(-1, abs=1e-5)


def test_on_the_output_side_the_trained_factor_is_a():
    first, second = adapter_of(method="qr-output"), adapter_of(seed=1, method="qr-triangular")
    a, b = first.layers["a.to_q"].A, second.layers["a.to_q"].A
    assert similarity(first, second)[0].trained == pytest.approx(float((a * b).sum() / a.norm() / b.norm()), abs=1e-5)


def test_a_zero_update_has_no_direction():
    row = similarity(adapter_of(), adapter_of().scaled(0.0))[0]
    assert math.isnan(row.update) and math.isnan(row.output_overlap) and row.input_overlap == pytest.approx(1)


def test_dependent_directions_count_once():
    A, B = torch.randn(3, 8), torch.randn(9, 3)
    twice = Adapter({"x": Pair(torch.cat([A, A]), torch.cat([B, B], 1))}, Header())
    assert similarity(Adapter({"x": Pair(A, B)}, Header()), twice)[0][3:5] == pytest.approx((1, 1), abs=1e-4)


def test_only_shared_layers_are_compared():
    assert [row.layer for row in similarity(adapter_of(("x", "y")), adapter_of(("y", "z")))] == ["y"]
    with pytest.raises(ValueError, match="no layer is in both"):
        similarity(adapter_of(("x",)), adapter_of(("y",)))
    with pytest.raises(ValueError, match=r"base models differ, .*\(9, 7\) and \(9, 6\) in x"):
        similarity(adapter_of(("x",)), adapter_of(("x",), i=6))


def sdxl_self_attention():
    """{layer: (o, i)} of the real SDXL UNet's 280 self-attention layers, without a byte of its weights."""
    unet = full_size.sdxl_unet()
    return {n: m.weight for n, m in unet.named_modules() if ".attn1.to_" in n and isinstance(m, torch.nn.Linear)}


def test_qr_trains_exactly_half_of_lora_on_sdxl():
    weights = sdxl_self_attention()
    layers = {
        layer: Pair(torch.zeros(1, 1).expand(64, w.shape[1]), torch.zeros(1, 1).expand(w.shape[0], 64))
        for layer, w in weights.items()
    }
    counts = {
        method: trainable_parameters(Adapter(layers, Header(method=method, rank=64)))
        for method in ("qr", "qr-output", "qr-triangular", "qr-direct", "lora")
    }
    assert len(weights) == 280
    assert counts["lora"] == counts["qr-direct"] == 2 * counts["qr"] == 2 * counts["qr-output"] == 42_598_400
    assert counts["qr-triangular"] == counts["qr"] - 280 * 64 * 63 // 2


def test_a_stack_trains_nothing():
    stacked = merge([adapter_of(), adapter_of(seed=1)], (1, 1), "stack")
    with pytest.raises(ValueError, match="'stack' trains nothing"):
        trainable_parameters(stacked)


def test_old_names_of_norms_and_cosines_warn_and_give_the_same():
    adapter = qrlora.Adapter({"a": qrlora.Pair(torch.ones(1, 2), torch.ones(3, 1))}, qrlora.Header(rank=1))
    with pytest.warns(DeprecationWarning, match="qrlora.energy is now qrlora.update_norms; .* 0.3"):
        assert qrlora.energy is update_norms
    with pytest.warns(DeprecationWarning, match="Pair.squared_norm; .* 0.3"):
        assert adapter.layers["a"].energy == adapter.layers["a"].squared_norm == 6
    (row,) = similarity(adapter, adapter)
    with pytest.warns(DeprecationWarning, match="trained; .* 0.3"):
        assert row.learned == row.trained == 1
