"""Files of every family in every spelling: there and back bit for bit, and the same in stock diffusers."""

import json

import pytest
import torch

import full_size
import pico
from loras import TARGETS, assert_same, assert_updates, part_of, random_adapter, stock_updates
from qrlora.adapter import Adapter, Header, Pair, linear_layers, name_ends_in
from qrlora.families import FAMILIES
from qrlora.files import load, save, size_in_bytes
from qrlora.files.fused_layers import fuse_layers, split_layers
from qrlora.layouts import LAYOUTS
from qrlora.safetensors_files import read_safetensors

FLUX = LAYOUTS["flux"]
ATTENTION = ("to_q", "to_k", "to_v", "add_k_proj")
SINGLE = tuple(f"single_transformer_blocks.0.{x}" for x in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"))


@pytest.fixture(scope="module")
def pipes():
    return {family: make() for family, make in pico.BASES.items()}


@pytest.mark.parametrize("keys", ["kohya", "diffusers"])
@pytest.mark.parametrize("family", pico.BASES)
@pytest.mark.parametrize("rank", [2, lambda layer: 1 + len(layer) % 3], ids=["one-rank", "many-ranks"])
@pytest.mark.parametrize("endings", [None, ATTENTION], ids=["all-layers", "attention"])
def test_what_is_saved_is_read_back_bit_for_bit(pipes, tmp_path, family, keys, rank, endings):
    adapter = random_adapter(pipes[family], family, endings, rank)
    save(adapter, tmp_path / "x.safetensors", keys=keys)
    assert_same(adapter, load(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_layers_without_an_update_come_back_with_their_directions(pipes, tmp_path, family):
    """An untrained adapter in one weight is all zeros: only the header knows whose ranks are whose."""
    adapter = random_adapter(pipes[family], family)
    still = Adapter({x: Pair(p.A, torch.zeros_like(p.B)) for x, p in adapter.layers.items()}, adapter.header)
    save(still, tmp_path / "x.safetensors", keys="kohya")
    assert_same(still, load(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("family", pico.BASES)
def test_stock_diffusers_loads_the_default_names_at_strength_one(pipes, tmp_path, family):
    adapter = random_adapter(pipes[family], family, rank=lambda layer: 1 + len(layer) % 3)
    save(adapter, tmp_path / "x.safetensors")
    found = stock_updates(pipes[family], tmp_path / "x.safetensors")
    assert found.keys() == adapter.layers.keys()
    assert_updates(found, adapter)


@pytest.mark.parametrize("family, preset", [(name, preset) for name in FAMILIES for preset in FAMILIES[name].targets])
def test_stock_diffusers_loads_the_layers_of_every_preset(pipes, tmp_path, family, preset):
    layers = linear_layers(getattr(pipes[family], part_of(pipes[family])), FAMILIES[family].targets[preset])
    adapter = random_adapter(pipes[family], family, {name: tuple(x.weight.shape) for name, x in layers.items()})
    save(adapter, tmp_path / "x.safetensors")
    found = stock_updates(pipes[family], tmp_path / "x.safetensors")
    assert found.keys() == adapter.layers.keys()
    assert_updates(found, adapter)


def test_stock_diffusers_loads_kohyas_names_for_flux(pipes, tmp_path):
    double = random_adapter(pipes["flux"], "flux").select(lambda layer: layer.startswith("transformer_blocks"))
    save(double, tmp_path / "x.safetensors", keys="kohya")
    assert_updates(stock_updates(pipes["flux"], tmp_path / "x.safetensors"), double)


@pytest.mark.parametrize("layers", [SINGLE, SINGLE[:3], SINGLE[:1]], ids=["q k v mlp", "q k v", "q"])
def test_stock_diffusers_takes_linear1_of_real_size_apart_to_the_same_updates(tmp_path, layers):
    """Its translation knows no other size than FLUX.1's, and needs no model for it."""
    from diffusers import FluxPipeline

    generator = torch.Generator().manual_seed(0)
    pairs = {
        x: Pair(torch.randn(2, 3072, generator=generator), torch.randn(12288 if "mlp" in x else 3072, 2))
        for x in layers
    }
    adapter = Adapter(pairs, Header(family="flux", component="transformer", rank=2))
    save(adapter, tmp_path / "x.safetensors", keys="kohya")
    translated = FluxPipeline.lora_state_dict(tmp_path / "x.safetensors")
    for layer in SINGLE:
        A, B = (translated[f"transformer.{layer}.lora_{x}.weight"].double() for x in "AB")
        pair = pairs.get(layer)
        expected = pair.B.double() @ pair.A.double() if pair else torch.zeros(len(B), 3072).double()
        torch.testing.assert_close(B @ A, expected)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_a_kohya_key_of_the_original_model_holds_the_layers_outputs_below_each_other(pipes, tmp_path, family):
    """What ComfyUI and kohya do with the file: alpha / r times up times down, added to the one weight of q, k and v."""
    adapter = random_adapter(pipes[family], family)
    save(adapter, tmp_path / "x.safetensors", keys="kohya")
    tensors, _ = read_safetensors(tmp_path / "x.safetensors")
    stem = {"sd3": "lora_unet_joint_blocks_0_x_block_attn_qkv", "flux": "lora_unet_double_blocks_0_img_attn_qkv"}[
        family
    ]
    down, up, alpha = (tensors[f"{stem}.{x}"] for x in ("lora_down.weight", "lora_up.weight", "alpha"))
    update = float(alpha) / len(down) * up.double() @ down.double()
    names = [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"]
    torch.testing.assert_close(update, torch.cat([adapter.dense(x).double() for x in names]), atol=1e-6, rtol=1e-5)


def test_layers_that_share_a_stay_at_its_rank():
    A, layers = torch.randn(3, 8), ("b.to_q", "b.to_k", "b.to_v")
    pairs = {x: Pair(A.clone(), torch.randn(8, 3)) for x in layers}
    pair, ranks = fuse_layers(pairs, FLUX, layers)
    assert (pair.rank, ranks) == (3, [3, 3, 3])
    for back in (split_layers(pair, FLUX, layers, ranks), split_layers(pair, FLUX, layers)):
        assert all(torch.equal(back[x].A, A) and torch.equal(back[x].B, pairs[x].B) for x in layers)


def test_another_tools_block_diagonal_pair_is_taken_apart_to_its_ranks():
    """sd-scripts trains q, k and v apart and stores them so; a layer of zeros is none."""
    blocks = [torch.randn(8, 2) for _ in range(2)]
    pair = Pair(torch.randn(4, 8), torch.block_diag(blocks[0], torch.zeros(8, 0), blocks[1]))
    back = split_layers(pair, FLUX, ("q", "k", "v"))
    assert back.keys() == {"q", "v"} and all(torch.equal(back[x].B, B) for x, B in zip("qv", blocks, strict=True))
    assert torch.equal(back["v"].A, pair.A[2:])
    dense = Pair(torch.randn(4, 8), torch.randn(24, 4))
    assert torch.equal(
        torch.cat([x.B @ x.A for x in split_layers(dense, FLUX, ("q", "k", "v")).values()]), dense.B @ dense.A
    )


def test_pairs_that_cannot_lie_in_one_weight_are_refused():
    with pytest.raises(
        ValueError, match="b.to_k: cannot lie in one weight with b.to_q, its shape is .9, 8., not .8, 8."
    ):
        fuse_layers({"b.to_k": Pair(torch.ones(2, 8), torch.ones(9, 2))}, FLUX, ("b.to_q", "b.to_k", "b.to_v"))
    with pytest.raises(ValueError, match="must have 24 outputs for 8 inputs, got 23"):
        split_layers(Pair(torch.ones(2, 8), torch.ones(23, 2)), FLUX, ("b.to_q", "b.to_k", "b.to_v"))
    with pytest.raises(ValueError, match="header gives ranks"):
        split_layers(Pair(torch.ones(2, 8), torch.ones(24, 2)), FLUX, ("b.to_q", "b.to_k", "b.to_v"), [1, 2, 1])


@pytest.mark.parametrize("family", pico.BASES)
def test_the_metadata_names_the_family_to_other_tools(pipes, tmp_path, family):
    adapter = random_adapter(pipes[family], family)
    save(adapter, tmp_path / "x.safetensors")
    metadata = read_safetensors(tmp_path / "x.safetensors")[1]
    known = next(iter(LAYOUTS[family].variants.values()))
    assert metadata["modelspec.architecture"] == f"{known.architecture}/lora" and metadata["ss_v2"] == "False"
    assert metadata["ss_base_model_version"] == known.base_version
    described = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    assert bool(described) == (next(iter(LAYOUTS[family].written)) == "diffusers")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("content", "keys"), [("compact", None), ("full", "kohya"), ("full", "diffusers")])
@pytest.mark.parametrize("family", pico.BASES)
def test_the_size_is_known_before_the_file(pipes, tmp_path, monkeypatch, family, content, keys, dtype):
    monkeypatch.setenv("QRLORA_CACHE", str(tmp_path / "cache"))
    adapter = random_adapter(pipes[family], family, rank=3, method="qr", basis="0" * 64)
    save(adapter, tmp_path / "x.safetensors", content=content, keys=keys, dtype=dtype)
    computed = size_in_bytes(adapter.shapes, adapter.header, content, keys, dtype)
    assert computed == (tmp_path / "x.safetensors").stat().st_size


def real_layers(family):
    """{layer: (o, i)} of SDXL's self-attention and of the paper's choice in FLUX.1, from diffusers' own classes."""
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        if family == "flux":
            model, endings = FluxTransformer2DModel(guidance_embeds=True), TARGETS["flux"]
            endings = (*(x for x in endings if x not in ("proj_mlp", "proj_out")), "ff_context.net.2")
        else:
            model = full_size.sdxl_unet()
            endings = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")
    return {
        n: tuple(x.weight.shape) for n, x in model.named_modules() if hasattr(x, "weight") and name_ends_in(n, endings)
    }


@pytest.mark.parametrize(("family", "layers", "full", "compact"), [("flux", 342, 360, 180), ("sdxl", 280, 86, 43)])
def test_files_of_the_real_models_at_rank_64_in_bfloat16_have_the_promised_size(family, layers, full, compact):
    shapes = real_layers(family)
    assert len(shapes) == layers
    header = Header(family=family, component="unet" if family == "sdxl" else "transformer", method="qr", rank=64)
    for content, promised in (("full", full), ("compact", compact)):
        megabytes = size_in_bytes(shapes, header, content, dtype=torch.bfloat16) / 1e6
        assert 0.98 * promised < megabytes <= promised
