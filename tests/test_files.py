"""Adapter files against stock diffusers and PEFT on a pico SDXL, and against damage."""

import json
import math

import pytest
import torch

import pico
from qrlora.adapter import Adapter, Header, Pair
from qrlora.basis import cache_folder, compute_basis
from qrlora.files import load, read_header, save
from qrlora.initialisation_methods import METHODS
from qrlora.linalg import is_finite
from qrlora.lora_keys import natural
from qrlora.merging import merge
from qrlora.safetensors_files import read_safetensors, write_safetensors


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QRLORA_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def pipe():
    return pico.sdxl()


@pytest.fixture
def unet(pipe):
    yield pipe.unet
    pipe.unload_lora_weights()


def weights_of(unet, ending="attn1"):
    linears = {name: m.weight for name, m in unet.named_modules() if isinstance(m, torch.nn.Linear)}
    return {name: weight for name, weight in linears.items() if f".{ending}.to_" in name}


def trained(unet, method, seed, rank=3, ending="attn1", **header):
    """An adapter with random numbers in what its method learns."""
    row, weights = METHODS[method], weights_of(unet, ending)
    basis = compute_basis(weights.items(), rank, row.side) if row.side else None
    generator, layers = torch.Generator().manual_seed(seed), {}
    for layer, weight in weights.items():
        start = row.start(weight, basis.Q[layer] if basis else None, rank, generator)
        learnt = {name: torch.randn(getattr(start, name).shape, generator=generator) for name in start.trainable}
        layers[layer] = Pair(**{"A": start.A, "B": start.B, **learnt})
    given = dict(family="sdxl", component="unet", method=method, rank=rank, basis=basis.digest if basis else "")
    return Adapter(layers, Header(**{**given, **header}))


@torch.no_grad()
def picture(unet):
    """What the UNet answers, on fixed noise and conditions."""
    generator = torch.Generator().manual_seed(0)
    size, width = unet.config.sample_size, unet.config.cross_attention_dim
    added = {"text_embeds": torch.randn(1, 12, generator=generator), "time_ids": torch.full((1, 6), 16.0)}
    noise = torch.randn(1, unet.config.in_channels, size, size, generator=generator)
    words = torch.randn(1, 7, width, generator=generator)
    return unet(noise, 500, words, added_cond_kwargs=added).sample


@torch.no_grad()
def picture_with(unet, *updates):
    """The UNet's answer with dense updates (adapter, strength) added to its weights in float64."""
    weights = dict(unet.named_modules())
    before = {layer: weights[layer].weight.clone() for adapter, _ in updates for layer in adapter.layers}
    for layer, weight in before.items():
        total = sum(
            s * a.layers[layer].B.double() @ a.layers[layer].A.double() for a, s in updates if layer in a.layers
        )
        weights[layer].weight.copy_(weight.double() + total)
    answer = picture(unet)
    for layer, weight in before.items():
        weights[layer].weight.copy_(weight)
    return answer


def stock_picture(pipe, path):
    """The UNet's answer with a file that stock diffusers loaded."""
    pipe.load_lora_weights(path)
    answer = picture(pipe.unet)
    pipe.unload_lora_weights()
    return answer


def assert_same(first, second):
    for layer, pair in first.layers.items():
        assert torch.equal(pair.A, second.layers[layer].A) and torch.equal(pair.B, second.layers[layer].B)
    assert list(second.layers) == sorted(first.layers, key=natural)


def close(first, second):
    torch.testing.assert_close(first, second, atol=3e-4, rtol=1e-3)  # float32, updates as large as the weights


@pytest.mark.parametrize("keys", ["kohya", "diffusers"])
@pytest.mark.parametrize("method", METHODS)
def test_a_file_is_read_back_and_stock_diffusers_paints_the_same(pipe, unet, tmp_path, method, keys):
    adapter, path = trained(unet, method, 1), tmp_path / "x.safetensors"
    with_update = picture_with(unet, (adapter, 1))
    assert (with_update - picture(unet)).abs().max() > 1e-2
    save(adapter, path, keys=keys)
    assert load(path).header == read_header(path) == adapter.header
    assert_same(adapter, load(path))
    close(stock_picture(pipe, path), with_update)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # two adapters at once are the point
@pytest.mark.parametrize("rule", ["sum", "stack"])
@pytest.mark.parametrize("method", ["qr", "qr-output"])
def test_a_merged_file_is_both_files_set_to_their_strengths(pipe, unet, tmp_path, method, rule):
    """Stock diffusers' set_adapters([content, style], [lc, ls]) is eq. 7."""
    adapters, strengths = [trained(unet, method, seed) for seed in (1, 2)], [0.8, 0.6]
    names = ["first_adapter", "second_adapter"]
    for name, adapter in zip(names, adapters, strict=True):
        save(adapter, tmp_path / f"{name}.safetensors")
        pipe.load_lora_weights(tmp_path / f"{name}.safetensors", adapter_name=name)
    pipe.set_adapters(names, strengths)
    both = picture(unet)
    pipe.unload_lora_weights()
    close(both, picture_with(unet, *zip(adapters, strengths, strict=True)))
    save(merge([load(tmp_path / f"{name}.safetensors") for name in names], strengths, rule), tmp_path / "m.safetensors")
    close(stock_picture(pipe, tmp_path / "m.safetensors"), both)


@pytest.mark.parametrize("keys", ["kohya", "diffusers"])
def test_layers_of_different_ranks_have_strength_one(pipe, unet, tmp_path, keys):
    """Alpha keys would make some readers apply such layers at another strength."""
    wide, narrow = trained(unet, "qr", 1), trained(unet, "qr", 2, rank=2, ending="attn2")
    merged = merge([wide, narrow], (1, 1))
    assert {pair.rank for pair in merged.layers.values()} == {2, 3}
    save(merged, tmp_path / "m.safetensors", keys=keys)
    assert_same(merged, load(tmp_path / "m.safetensors"))
    close(stock_picture(pipe, tmp_path / "m.safetensors"), picture_with(unet, (wide, 1), (narrow, 1)))


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.frozen_side])
def test_a_compact_file_is_about_half_and_holds_the_same(unet, tmp_path, method):
    adapter = trained(unet, method, 1)
    save(adapter, tmp_path / "full.safetensors")
    save(adapter, tmp_path / "compact.safetensors", content="compact")
    compact = load(tmp_path / "compact.safetensors")
    assert_same(adapter, compact)
    (basis,) = cache_folder().iterdir()
    assert basis.stem == compact.header.basis
    numbers = {
        name: sum(x.numel() for x in read_safetensors(tmp_path / f"{name}.safetensors")[0].values())
        for name in ("compact", "full")
    }
    learnt = "B" if METHODS[method].frozen_side == "input" else "A"
    assert numbers["compact"] == sum(getattr(pair, learnt).numel() for pair in adapter.layers.values())
    assert numbers["compact"] < 0.6 * numbers["full"]
    basis.unlink()
    with pytest.raises(FileNotFoundError, match="basis .* is not in .*; copy it .* or save there with content='full'"):
        load(tmp_path / "compact.safetensors")


def test_no_other_tool_mistakes_a_compact_file_for_a_lora(pipe, unet, tmp_path):
    save(trained(unet, "qr", 1), tmp_path / "x.safetensors", content="compact")
    with pytest.raises(ValueError, match="Invalid LoRA"):
        pipe.load_lora_weights(tmp_path / "x.safetensors")


def test_a_method_that_freezes_nothing_has_no_compact_file(unet, tmp_path):
    for method in ("lora", "qr-direct"):
        with pytest.raises(ValueError, match=f"'{method}' freezes nothing"):
            save(trained(unet, method, 1), tmp_path / "x.safetensors", content="compact")


def test_the_metadata_is_what_tools_look_for(unet, tmp_path):
    adapter = trained(unet, "qr", 1, role="content", trigger="<c>")
    save(adapter, tmp_path / "kohya.safetensors")
    tensors, metadata = read_safetensors(tmp_path / "kohya.safetensors")
    assert all(key.startswith("lora_unet_") and not key.endswith("alpha") for key in tensors)
    assert metadata["ss_base_model_version"].startswith("sdxl_") and "lora_adapter_metadata" not in metadata
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert metadata["modelspec.trigger_phrase"] == "<c>" and metadata["ss_network_dim"] == "3"
    save(adapter, tmp_path / "diffusers.safetensors", keys="diffusers")
    described = json.loads(read_safetensors(tmp_path / "diffusers.safetensors")[1]["lora_adapter_metadata"])
    known = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "use_dora", "lora_bias"}
    assert {name.removeprefix("unet.") for name in described} == known and described["unet.lora_alpha"] == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_files_still_add_in_one_basis(unet, tmp_path, dtype):
    adapters = [trained(unet, "qr", seed) for seed in (1, 2)]
    for k, adapter in enumerate(adapters):
        save(adapter, tmp_path / f"{k}.safetensors", dtype=dtype)
    read_back = [load(tmp_path / f"{k}.safetensors") for k in range(2)]
    assert merge(read_back, (1, 1)).header.parents[1]["kept_energy"] == 1.0
    mixed = merge([adapters[0], read_back[1]], (1, 1))
    assert mixed.header.parents[1]["kept_energy"] > 0.999
    for layer in mixed.layers:
        exact = adapters[0].dense(layer) + adapters[1].dense(layer)
        assert (mixed.dense(layer) - exact).norm() < 0.02 * exact.norm()


def test_numbers_too_large_for_the_dtype_are_refused(unet, tmp_path):
    with pytest.raises(ValueError, match="to_.*too large for torch.float16"):
        save(trained(unet, "qr", 1).scaled(1e3).scaled(1e3), tmp_path / "x.safetensors", dtype=torch.float16)
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize("wrong", [{"content": "half"}, {"keys": "khoya"}, {"path": "x.pt"}])
def test_unknown_words_are_refused(unet, tmp_path, wrong):
    with pytest.raises(ValueError, match="contents full, compact; keys kohya, diffusers|name must end in .safetensors"):
        save(trained(unet, "qr", 1), tmp_path / wrong.pop("path", "x.safetensors"), **wrong)


@pytest.mark.parametrize("content", ["full", "compact"])
def test_a_file_cut_at_any_byte_is_refused(unet, tmp_path, content):
    one = next(iter(trained(unet, "qr", 1).layers))
    adapter = trained(unet, "qr", 1).select(lambda layer: layer == one)
    save(adapter, tmp_path / "x.safetensors", content=content)
    whole, cut = (tmp_path / "x.safetensors").read_bytes(), tmp_path / "cut.safetensors"
    for size in range(len(whole)):
        cut.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="cut.safetensors: not a whole safetensors file"):
            load(cut)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("content", ["full", "compact"])
def test_nan_and_infinity_are_refused_with_the_layer(unet, tmp_path, bad, content):
    save(trained(unet, "qr", 1), tmp_path / "x.safetensors", content=content)
    tensors, metadata = read_safetensors(tmp_path / "x.safetensors")
    name = max(tensors)
    tensors[name] = torch.full_like(tensors[name], bad)
    write_safetensors(tmp_path / "x.safetensors", tensors, metadata)
    with pytest.raises(ValueError, match=r"x.safetensors: up_blocks.*attn1.to_.: B holds NaN or infinity"):
        load(tmp_path / "x.safetensors")


def test_another_version_is_refused(unet, tmp_path):
    save(trained(unet, "qr", 1), tmp_path / "x.safetensors")
    tensors, metadata = read_safetensors(tmp_path / "x.safetensors")
    newer = {**metadata, "qrlora": json.dumps({**json.loads(metadata["qrlora"]), "format_version": 9})}
    write_safetensors(tmp_path / "x.safetensors", tensors, newer)
    for reader in (load, read_header):
        with pytest.raises(ValueError, match="x.safetensors: adapter format 9, this qrlora reads format 1: upgrade"):
            reader(tmp_path / "x.safetensors")


def test_half_a_pair_a_convolution_and_a_whole_model_are_refused(unet, tmp_path):
    layer, path = next(iter(weights_of(unet))), tmp_path / "x.safetensors"
    for tensors, message in (
        ({f"unet.{layer}.lora_A.weight": torch.ones(2, 8)}, "needs two matrices"),
        ({f"unet.{layer}.lora_{x}.weight": torch.ones(2, 2, 3, 3) for x in "AB"}, "needs two matrices"),
        ({"conv_in.weight": torch.ones(2, 2)}, "plain LoRA files"),
        ({}, "no layers"),
    ):
        write_safetensors(path, tensors, {})
        with pytest.raises(ValueError, match=message):
            load(path)
    with pytest.raises(ValueError, match="not written by qrlora"):
        read_header(path)


def test_kohya_alphas_are_strengths(pipe, unet, tmp_path):
    adapter, tensors = trained(unet, "lora", 1), {}
    for layer, pair in adapter.layers.items():
        flat = f"lora_unet_{layer.replace('.', '_')}"
        tensors |= {f"{flat}.lora_down.weight": pair.A, f"{flat}.lora_up.weight": pair.B}
        tensors[f"{flat}.alpha"] = torch.tensor(1.5)
    write_safetensors(
        tmp_path / "x.safetensors", tensors, {"ss_base_model_version": "sdxl_base_v1-0", "ss_sd_model_name": "some"}
    )
    loaded = load(tmp_path / "x.safetensors")
    assert (loaded.header.family, loaded.header.base, loaded.header.method) == ("sdxl", "some", "lora")
    assert loaded.header.rank == 3
    close(stock_picture(pipe, tmp_path / "x.safetensors"), picture_with(unet, (adapter, 0.5)))
    close(picture_with(unet, (loaded, 1)), picture_with(unet, (adapter, 0.5)))


@pytest.mark.parametrize("rslora", [False, True])
def test_files_of_peft_and_diffusers_are_read_at_their_strength(pipe, unet, tmp_path, rslora):
    from peft import LoraConfig, get_peft_model
    from peft.utils import get_peft_model_state_dict

    ending = "attn2.to_k"
    config = LoraConfig(
        r=2,
        lora_alpha=6,
        use_rslora=rslora,
        target_modules=["attn1.to_q", ending],
        rank_pattern={ending: 3},
        alpha_pattern={ending: 5},
        init_lora_weights=False,
    )
    unet.add_adapter(config, "stock")
    stock, before = picture(unet), get_peft_model_state_dict(unet, adapter_name="stock")
    metadata = {"unet": unet.peft_config["stock"].to_dict()}
    pipe.save_lora_weights(tmp_path, before, unet_lora_adapter_metadata=metadata["unet"])
    pipe.unload_lora_weights()
    loaded = load(tmp_path / "pytorch_lora_weights.safetensors")
    close(picture_with(unet, (loaded, 1)), stock)

    copy = pico.unet()
    copy.load_state_dict(unet.state_dict())
    model = get_peft_model(copy, config)
    close_to = picture(model.base_model.model)
    model.save_pretrained(tmp_path / "peft")
    loaded = load(tmp_path / "peft" / "adapter_model.safetensors")
    close(picture_with(unet, (loaded, 1)), close_to)
    (tmp_path / "peft" / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match="keeps its strength in .*adapter_config.json, which is missing"):
        load(tmp_path / "peft" / "adapter_model.safetensors")


def test_foreign_files_merge_as_a_stack_and_stay_one_file(pipe, unet, tmp_path):
    foreign, own = trained(unet, "lora", 1), trained(unet, "qr", 2, base="pico")
    tensors = {f"unet.{x}.lora_{k}.weight": getattr(p, k) for x, p in foreign.layers.items() for k in "AB"}
    write_safetensors(tmp_path / "foreign.safetensors", tensors, {"format": "pt"})
    merged = merge([load(tmp_path / "foreign.safetensors"), own], (1, 0.5), "stack")
    assert (merged.header.family, merged.header.base) == ("sdxl", "pico")
    save(merged, tmp_path / "m.safetensors")
    close(stock_picture(pipe, tmp_path / "m.safetensors"), picture_with(unet, (foreign, 1), (own, 0.5)))


def test_saving_twice_gives_the_same_bytes(unet, tmp_path):
    for name in "ab":
        save(trained(unet, "qr", 1), tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert all(is_finite(x) for x in read_safetensors(tmp_path / "a.safetensors")[0].values())


def test_a_merge_may_replace_a_file_that_it_read(unet, tmp_path):
    """Files are memory-mapped: what was read stays, because a new file takes the name."""
    adapter, path = trained(unet, "qr", 1), tmp_path / "x.safetensors"
    save(adapter, path)
    read_back = load(path)
    save(merge([read_back], [2]), path)
    assert_same(adapter, read_back)
    layer = next(iter(adapter.layers))
    assert torch.equal(load(path).layers[layer].B, 2 * adapter.layers[layer].B)
