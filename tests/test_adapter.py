"""Adapters as values."""

import json
import math

import pytest
import torch

from qrlora.adapter import Adapter, Header, Pair, name_ends_in


def adapter_of(layers=("a.to_q", "a.to_k"), o=9, i=7, r=3, seed=0, **header):
    generator = torch.Generator().manual_seed(seed)
    pairs = {
        layer: Pair(torch.randn(r, i, generator=generator), torch.randn(o, r, generator=generator)) for layer in layers
    }
    return Adapter(pairs, Header(**header))


def test_the_update_is_b_a():
    adapter = adapter_of()
    pair = adapter.layers["a.to_q"]
    assert torch.equal(adapter.dense("a.to_q"), pair.B @ pair.A)
    assert (adapter.rank, adapter.shapes) == (3, {"a.to_q": (9, 7), "a.to_k": (9, 7)})
    assert pair.squared_norm == pytest.approx(float((pair.B.double() @ pair.A.double()).square().sum()), rel=1e-5)
    with pytest.raises(ValueError, match="no layer 'b'"):
        adapter.dense("b")


@pytest.mark.parametrize("strength", [0.0, -0.5, 2.0])
def test_scaling_scales_the_update(strength):
    adapter = adapter_of()
    torch.testing.assert_close(adapter.scaled(strength).dense("a.to_q"), strength * adapter.dense("a.to_q"))


def test_layers_are_selected_by_whole_dotted_endings():
    adapter = adapter_of(("x.attn1.to_q", "x.attn2.to_q", "x.attn1.not_to_q", "x.attn1.to_out.0"))
    assert list(adapter.select(["to_q"]).layers) == ["x.attn1.to_q", "x.attn2.to_q"]
    assert list(adapter.select(["attn1.to_q", "to_out.0"]).layers) == ["x.attn1.to_q", "x.attn1.to_out.0"]
    assert list(adapter.select(lambda layer: "attn2" in layer).layers) == ["x.attn2.to_q"]
    assert name_ends_in("to_q", ["to_q"]) and not name_ends_in("to_q", ["q"])
    with pytest.raises(ValueError, match="none of the adapter's 4 layers"):
        adapter.select(["to_v"])


@pytest.mark.parametrize("side", ["input", "output"])
def test_in_basis_projects_on_the_basis(side):
    adapter, size = adapter_of(), 7 if side == "input" else 9
    Q = {layer: torch.linalg.qr(torch.randn(size, 4)).Q for layer in adapter.layers}
    placed, kept = adapter.in_basis(Q, side)
    for layer, directions in Q.items():
        dense, projector = adapter.dense(layer).double(), (directions @ directions.T).double()
        exact = dense @ projector if side == "input" else projector @ dense
        torch.testing.assert_close(placed.dense(layer).double(), exact, atol=1e-5, rtol=1e-5)
        assert kept[layer] == pytest.approx(float(exact.square().sum() / dense.square().sum()), abs=1e-5)
        assert torch.equal(placed.layers[layer].directions(side), directions)


@pytest.mark.parametrize("side", ["input", "output"])
def test_in_its_own_basis_an_adapter_stays_as_it_is(side):
    adapter = adapter_of()
    own = {layer: pair.directions(side).clone() for layer, pair in adapter.layers.items()}
    placed, kept = adapter.in_basis(own, side)
    assert set(kept.values()) == {1.0}
    assert all(placed.layers[layer] is pair for layer, pair in adapter.layers.items())


def test_in_a_turned_basis_nothing_is_lost():
    adapter = adapter_of()
    turn = torch.linalg.qr(torch.randn(3, 3)).Q
    turned = {layer: torch.linalg.qr(pair.A.T).Q @ turn for layer, pair in adapter.layers.items()}
    placed, kept = adapter.in_basis(turned, "input")
    torch.testing.assert_close(placed.dense("a.to_q"), adapter.dense("a.to_q"))
    assert min(kept.values()) > 1 - 1e-6


def test_a_zero_update_keeps_all_and_a_foreign_basis_is_refused():
    adapter = adapter_of().scaled(0.0)
    assert set(adapter.in_basis({x: torch.eye(7)[:, :2] for x in adapter.layers}, "input")[1].values()) == {1.0}
    with pytest.raises(ValueError, match="a.to_q: needs input directions with 7 entries, the basis has none"):
        adapter.in_basis({}, "input")
    with pytest.raises(ValueError, match=r"has \(9, 2\)"):
        adapter.in_basis({x: torch.eye(9)[:, :2] for x in adapter.layers}, "input")


@pytest.mark.parametrize(
    ("A", "B", "message"),
    [
        (torch.ones(3, 7), torch.ones(9, 2), r"a.to_q: A must be \(r, i\)"),
        (torch.ones(3, 7, 1), torch.ones(9, 3), "a.to_q: A must be"),
        (torch.ones(0, 7), torch.ones(9, 0), "a.to_q: A must be"),
        (torch.ones(3, 7).double(), torch.ones(9, 3).double(), "a.to_q: .*float64"),
        (torch.full((3, 7), math.nan), torch.ones(9, 3), "a.to_q: A holds NaN"),
        (torch.ones(3, 7), torch.full((9, 3), -math.inf), "a.to_q: B holds NaN or infinity"),
    ],
)
def test_a_broken_layer_is_named(A, B, message):
    with pytest.raises(ValueError, match=message):
        Adapter({"a.to_q": Pair(A, B)}, Header())


def test_an_adapter_has_layers():
    with pytest.raises(ValueError, match="at least one layer"):
        Adapter({}, Header())


MERGED = ({"weight": 1, "kept_energy": None},)


def test_a_header_survives_json():
    header = Header(family="sdxl", fingerprint={"a": 0.1}, config={"steps": 5, "seed": None}, parents=MERGED)
    assert Header.from_json(header.to_json()) == header


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable"),
        ("[]", "not readable"),
        ("{}", "not readable"),
        (json.dumps({"format_version": 2}), "format 2, this qrlora reads format 1: upgrade"),
        (json.dumps({"format_version": 1, "rnk": 3}), "unknown entries: rnk"),
    ],
)
def test_another_header_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Header.from_json(text)


ODD = [None, 5, -1.5, True, "null", "x", [], [5], [None], {}, {"a": 5}, float("nan"), 2**70]


def sound(name, value):
    """Whether a header may hold this value in that place."""
    if name in ("rank", "format_version"):
        return isinstance(value, int) and not isinstance(value, bool)
    if name == "fingerprint":
        return isinstance(value, dict)
    if name == "kernels":
        return value == {}
    if name in ("config", "parents"):
        return isinstance(value, dict) if name == "config" else value == []
    return isinstance(value, str)


@pytest.mark.parametrize("name", [*Header().entries(), "weight"])
@pytest.mark.parametrize("within", [False, True])
def test_a_header_with_any_json_in_any_place_is_read_or_refused_in_one_line(name, within):
    """In the header itself, and in that of an adapter that went into a merge."""
    whole = json.loads(Header(rank=2).to_json())
    for value in ODD:
        told = {**whole, name: value}
        if within:
            told = {**whole, "parents": [{**whole, "weight": 1.0, "kept_energy": None, name: value}]}
        elif name == "weight":
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if number if name == "weight" else sound(name, value) and (within or name != "format_version"):
            assert Header.from_json(json.dumps(told)).to_json()
        else:
            with pytest.raises(ValueError, match="header|format") as error:
                Header.from_json(json.dumps(told))
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["null", "5", "[]", '"x"', "{", "[" * 100_000, '{"role": 5}'])
def test_a_header_that_is_no_object_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match="not readable"):
        Header.from_json(text)


@pytest.mark.parametrize("name", ["basis_energy_lost", "truncation_error", "trained"])
def test_numbers_of_a_header_are_numbers(name):
    for value in ("x", [], float("inf"), True):
        with pytest.raises(ValueError, match=name):
            Header.from_json(json.dumps({**json.loads(Header().to_json()), "config": {name: value}}))
