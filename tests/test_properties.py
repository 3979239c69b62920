"""What holds for any layer, rank and weight: spelling and reading, fusing and splitting, the algebra of merging."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qrlora.adapter import Adapter, Header, Pair
from qrlora.files.fused_layers import fuse_layers, split_layers
from qrlora.layouts import LAYOUTS
from qrlora.merging import merge

FEW = settings(max_examples=40, deadline=None, database=None, derandomize=True)
FUSED = [(x, row.split()) for x in LAYOUTS.values() for row in x.names.values() if " " in row]
weights = st.floats(-2, 2, allow_nan=False, width=32)


@FEW
@given(st.data())
def test_every_name_that_is_spelt_is_read_back_as_the_same_layers(data):
    layout = data.draw(st.sampled_from([*LAYOUTS.values()]))
    template = data.draw(st.sampled_from(" ".join(layout.names.values()).split())).lstrip("~")
    layer = template.replace("#", str(data.draw(st.integers(0, 99))))
    for style in layout.written:
        name, together = layout.spell(style, layer)
        assert layer in together and layout.read(name).layers == together
        assert layout.read(f"{name}_") is None and layout.read(name[:-1]) is None


@FEW
@given(st.data(), st.integers(0, 2**31))
def test_what_is_fused_is_split_into_the_same_pairs(data, seed):
    layout, rows = data.draw(st.sampled_from(FUSED))
    layers = [row.lstrip("~").replace("#", "3") for row in rows]
    generator, inputs = torch.Generator().manual_seed(seed), 4
    heights = layout.heights(layers, inputs)
    given_ = data.draw(st.lists(st.sampled_from(layers), min_size=1, unique=True))
    pairs = {}
    for layer in (x for x in layers if x in given_):
        r = data.draw(st.integers(1, 3))
        A, B = torch.randn(r, inputs, generator=generator), torch.randn(heights[layer], r, generator=generator)
        pairs[layer] = Pair(A, B)
    fused, ranks = fuse_layers(pairs, layout, layers)
    back = split_layers(fused, layout, layers, ranks)
    assert back.keys() == pairs.keys()
    assert all(torch.equal(back[x].A, pairs[x].A) and torch.equal(back[x].B, pairs[x].B) for x in pairs)
    dense = torch.cat([pairs[x].B @ pairs[x].A if x in pairs else torch.zeros(heights[x], inputs) for x in layers])
    torch.testing.assert_close(fused.B @ fused.A, dense)


def adapter(seed, A=None, method="lora"):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(2, 5, generator=generator) if A is None else A
    return Adapter({"x": Pair(A, torch.randn(6, 2, generator=generator))}, Header(method=method, rank=2))


@FEW
@given(weights, weights, st.integers(0, 2**31))
@pytest.mark.parametrize("rule", ["sum", "stack"])
def test_a_merge_is_linear_and_does_not_know_the_order(rule, first, second, seed):
    A = torch.linalg.qr(torch.randn(5, 2, generator=torch.Generator().manual_seed(seed)))[0].T.contiguous()
    one, two = (adapter(seed + k, A, "qr") for k in (1, 2))
    merged = merge([one, two], [first, second], rule).dense("x")
    torch.testing.assert_close(merged, first * one.dense("x") + second * two.dense("x"), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(merged, merge([two, one], [second, first], rule).dense("x"), atol=1e-5, rtol=1e-4)
