"""Files of other tools: read as what they mean, or refused by name with a count. Hostile files are refused."""

import json
import math
import warnings

import pytest
import torch

import pico
from loras import assert_updates, random_adapter
from qrlora.adapter import Adapter, Header, Pair
from qrlora.compat import check
from qrlora.files import count_text_encoder_keys, load, save
from qrlora.initialisation_methods import METHODS
from qrlora.merging import merge
from qrlora.safetensors_files import HEADER_LIMIT, read_metadata, read_safetensors, write_safetensors

LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
FLAT = f"lora_unet_{LAYER.replace('.', '_')}"
PAIR = {f"unet.{LAYER}.lora_A.weight": torch.ones(2, 8), f"unet.{LAYER}.lora_B.weight": torch.ones(8, 2)}
FACTORS = ("A", "B")


@pytest.fixture(scope="module")
def pipes():
    return {family: make() for family, make in pico.BASES.items()}


def updates(adapter):
    return {layer: adapter.dense(layer) for layer in adapter.layers}


def raw_file(path, entries, body=b""):
    """A safetensors file from its header's text: {name: bytes of JSON}, repeated names and all."""
    text = b"{" + b",".join(json.dumps(name).encode() + b":" + value for name, value in entries) + b"}"
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_names_of_the_original_model_are_read_with_dots_too(pipes, tmp_path, family):
    """diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight, as trainers for ComfyUI write them."""
    adapter = random_adapter(pipes[family], family)
    save(adapter, tmp_path / "kohya.safetensors", keys="kohya")
    tensors, _ = read_safetensors(tmp_path / "kohya.safetensors")
    dotted = {}
    for key, tensor in tensors.items():
        name = key.replace("lora_unet_", "diffusion_model.").replace("lora_down", "lora_A").replace("lora_up", "lora_B")
        for inner in ("joint_blocks_0_", "joint_blocks_1_", "double_blocks_0_", "single_blocks_0_"):
            name = name.replace(inner, inner[:-1].replace("blocks_", "blocks.") + ".")
        for inner in ("attn", "attn2", "mlp"):
            name = name.replace(f"_{inner}_", f"_{inner}.")
        name = name.replace("x_block_", "x_block.")
        dotted[name.replace("context_block_", "context_block.")] = tensor
    write_safetensors(tmp_path / "dotted.safetensors", dotted, {})
    loaded = load(tmp_path / "dotted.safetensors")
    assert loaded.header.family == family and loaded.header.component == "transformer"
    assert_updates(updates(loaded), adapter)


def test_alpha_of_a_fused_pair_is_the_strength_of_all_its_layers(pipes, tmp_path):
    adapter = random_adapter(pipes["flux"], "flux")
    save(adapter, tmp_path / "x.safetensors", keys="kohya")
    tensors, _ = read_safetensors(tmp_path / "x.safetensors")
    halved = {key: x / 2 if key.endswith(".alpha") else x for key, x in tensors.items()}
    write_safetensors(tmp_path / "half.safetensors", halved, {"ss_base_model_version": "flux1"})
    assert_updates(updates(load(tmp_path / "half.safetensors")), adapter, 0.5)


def test_folders_of_peft_and_diffusers_are_read(pipes, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(pico.unet(), LoraConfig(r=2, lora_alpha=6, target_modules=["attn1.to_q"]))
    expected = {}
    for name, module in model.base_model.model.named_modules():
        if hasattr(module, "lora_B"):
            torch.nn.init.normal_(module.lora_B["default"].weight)
            expected[name] = module.get_delta_weight("default").detach()
    model.save_pretrained(tmp_path / "peft")
    loaded = load(tmp_path / "peft")
    assert loaded.layers.keys() == expected.keys()
    for layer, update in expected.items():
        torch.testing.assert_close(loaded.dense(layer), update)
    (tmp_path / "diffusers").mkdir()
    save(random_adapter(pipes["sdxl"], "sdxl"), tmp_path / "diffusers" / "pytorch_lora_weights.safetensors")
    assert load(tmp_path / "diffusers").header.family == "sdxl"
    with pytest.raises(IsADirectoryError):
        load(tmp_path)


@pytest.mark.parametrize("triangular", [False, True])
def test_the_authors_file_is_the_update_that_their_inference_adds(tmp_path, triangular):
    """Their weight is W_comp + Q (R + dR), with W_comp = W - Q R: so W + Q dR, and R is not needed."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 16, generator=generator, dtype=torch.float64)
    U, S, V = torch.linalg.svd(weight, full_matrices=False)
    Q, R = (x.contiguous() for x in torch.linalg.qr(U[:, :4] * S[:4] @ V[:4]))
    Q, R = Q[:, :4], R[:4]
    delta = torch.randn(4, 16, generator=generator, dtype=torch.float64)
    delta = delta.triu() if triangular else delta
    theirs = (weight - Q @ R) + Q @ (R + delta)
    stem = "transformer.transformer_blocks.0.attn.to_q.lora"
    factors = {"q": Q, "delta_r": delta, "base_r": R}
    write_safetensors(tmp_path / "x.safetensors", {f"{stem}.{k}.weight": x.float() for k, x in factors.items()}, {})
    loaded = load(tmp_path / "x.safetensors")
    (layer,) = loaded.layers
    assert loaded.header.method == ("qr-triangular" if triangular else "qr-output")
    assert METHODS[loaded.header.method].frozen_side == "output" and loaded.header.component == "transformer"
    torch.testing.assert_close(weight + loaded.dense(layer).double(), theirs, atol=1e-5, rtol=1e-5)
    assert torch.equal(loaded.layers[layer].B, Q.float()) and torch.equal(loaded.layers[layer].A, delta.float())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16])
def test_short_numbers_are_read_exactly(tmp_path, dtype):
    from safetensors.torch import save_file

    tensors = {key: (torch.randn(x.shape) * 3).to(dtype) for key, x in PAIR.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    pair = load(tmp_path / "x.safetensors").layers[LAYER]
    for found, stored in zip((pair.A, pair.B), tensors.values(), strict=True):
        assert found.dtype == torch.float32 and torch.equal(found.double(), stored.double())


TEXT = {f"lora_te1_text_model_encoder_layers_{k}_mlp_fc1.lora_down.weight": torch.ones(2, 8) for k in range(3)}
REFUSED = {  # what is added to a sound pair, what the one line must say
    "a text encoder": (TEXT, "3 of 5 keys: adapts a text encoder.*leave them out with --skip-text-encoders"),
    "DoRA": ({f"{FLAT}.dora_scale": torch.ones(8)}, "1 of 3 keys: a DoRA's"),
    "DoRA of PEFT": ({f"unet.{LAYER}.lora_magnitude_vector": torch.ones(8)}, "1 of 3 keys: a DoRA's"),
    "LoHa": ({f"{FLAT}.hada_w{k}_{x}": torch.ones(2, 2) for k in (1, 2) for x in "ab"}, "4 of 6 keys: a LoHa's"),
    "LoKr": ({f"{FLAT}.lokr_w1": torch.ones(2, 2)}, "1 of 3 keys: a LoKr's"),
    "OFT": ({f"{FLAT}.oft_blocks": torch.ones(2, 2)}, "1 of 3 keys: an OFT's"),
    "IA3": ({f"{FLAT}.on_input": torch.ones(1)}, "1 of 3 keys: an IA3's"),
    "a full difference": ({f"{FLAT}.diff": torch.ones(2, 2)}, "1 of 3 keys: a full difference's"),
    "a bias": ({f"unet.{LAYER}.lora_B.bias": torch.ones(8)}, "1 of 3 keys: a bias's"),
    "scaled fp8": ({"scaled_fp8": torch.ones(1)}, "1 of 3 keys: of scaled fp8 numbers"),
    "unknown": ({"model.secret": torch.ones(1)}, r"1 of 3 keys: unknown; .*\(model.secret\)"),
    "two causes": ({**TEXT, f"{FLAT}.lokr_w1": torch.ones(2)}, "3 of 6 keys: .*; 1 of 6 keys: a LoKr's"),
    "a convolution in three": ({f"{FLAT}.lora_mid.weight": torch.ones(2, 2, 3, 3)}, "taken apart in three"),
    "a B with a kernel": (
        {f"unet.down_blocks.0.resnets.0.conv1.lora_{x}.weight": torch.ones(2, 2, 3, 3) for x in FACTORS},
        "needs two matrices",
    ),
    "integers": (
        {f"unet.x.lora_{x}.weight": torch.ones(2, 2, dtype=torch.int64) for x in FACTORS},
        "holds torch.int64",
    ),
    "half a pair": ({"unet.x.lora_A.weight": torch.ones(2, 8)}, "x: needs two matrices"),
    "two spellings": ({f"{FLAT}.lora_down.weight": torch.ones(2, 8)}, "are the same factor of one layer, twice"),
    "two components": (
        {f"transformer.transformer_blocks.0.lora_{x}.weight": torch.ones(2, 2) for x in FACTORS},
        "one component",
    ),
    "steering names": ({"unet.\x1b[2J\u202e../../etc.secret": torch.ones(1)}, r"unet.\\x1b\[2J\\u202e../../etc.secret"),
    "ranks that differ": (
        {f"unet.x.lora_{x}.weight": torch.ones(2, 3) for x in FACTORS},
        r"x: A must be \(r, i\) and B \(o, r\), got \(2, 3\) and \(2, 3\)",
    ),
}


@pytest.mark.parametrize(("added", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_plain_lora_is_refused_with_what_was_found(tmp_path, added, message):
    write_safetensors(tmp_path / "x.safetensors", {**PAIR, **added}, {})
    with pytest.raises(ValueError, match=f"x.safetensors: .*{message}"):
        load(tmp_path / "x.safetensors")


def test_text_encoders_can_be_left_out_and_are_counted(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", {**PAIR, **TEXT}, {})
    assert count_text_encoder_keys(tmp_path / "x.safetensors") == 3
    assert load(tmp_path / "x.safetensors", skip_text_encoders=True).layers.keys() == {LAYER}
    write_safetensors(tmp_path / "x.safetensors", TEXT, {})
    with pytest.raises(ValueError, match="no layers"):
        load(tmp_path / "x.safetensors", skip_text_encoders=True)


def test_a_layer_alone_and_in_one_with_others_is_refused(pipes, tmp_path):
    adapter = random_adapter(pipes["flux"], "flux")
    save(adapter, tmp_path / "x.safetensors", keys="kohya")
    tensors, metadata = read_safetensors(tmp_path / "x.safetensors")
    layer = "transformer_blocks.0.attn.to_q"
    alone = {f"transformer.{layer}.lora_{x}.weight": getattr(adapter.layers[layer], x) for x in FACTORS}
    write_safetensors(tmp_path / "x.safetensors", {**tensors, **alone}, metadata)
    with pytest.raises(ValueError, match="twice"):
        load(tmp_path / "x.safetensors")


def test_adapters_of_two_families_are_not_merged_and_both_are_named(pipes, tmp_path):
    for family in ("sd3", "flux"):
        tensors = random_adapter(pipes[family], family).layers
        stored = {f"transformer.{x}.lora_{k}.weight": getattr(p, k) for x, p in tensors.items() for k in FACTORS}
        version = {"sd3": "medium", "flux": ""}[family]  # FLUX.1's single blocks give it away
        write_safetensors(
            tmp_path / f"{family}.safetensors", stored, {"ss_base_model_version": version} if version else {}
        )
    with pytest.raises(ValueError, match="different family: 'sd3' and 'flux'"):
        merge([load(tmp_path / f"{family}.safetensors") for family in ("sd3", "flux")], [1, 1], "stack")


def test_a_name_given_twice_is_refused(tmp_path):
    entry = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    raw_file(tmp_path / "x.safetensors", [("a", entry), ("a", entry)], bytes(4))
    with pytest.raises(ValueError, match="holds 1 names twice, such as 'a'"):
        read_safetensors(tmp_path / "x.safetensors")
    raw_file(tmp_path / "x.safetensors", [("__metadata__", b'{"k":"1","k":"2"}'), ("a", entry)], bytes(4))
    with pytest.raises(ValueError, match="such as 'k'"):
        read_metadata(tmp_path / "x.safetensors")


def test_headers_that_lie_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    for length in (2**20, 2**40, 2**63, 2**64 - 1):
        path.write_bytes(length.to_bytes(8, "little") + b'{"a":1}')
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            read_safetensors(path)
    for offsets in ("[0,99]", "[4,0]", "[-4,0]", "[0,1e300]"):
        raw_file(path, [("a", b'{"dtype":"F32","shape":[1],"data_offsets":%s}' % offsets.encode())], bytes(4))
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            read_safetensors(path)
    for text in (b"[" * 100_000, b"{" + b'"a":{' * 50_000, b"\xff\xfe{}"):
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            read_safetensors(path)


@pytest.mark.parametrize("size", [HEADER_LIMIT + 1, 100_000_000, 200_000_000])
def test_a_hundred_megabytes_of_metadata_are_refused_unread(tmp_path, size):
    with (tmp_path / "x.safetensors").open("wb") as file:
        file.write(size.to_bytes(8, "little") + b'{"__metadata__":{"a":"')
        file.truncate(8 + size)
    with pytest.raises(ValueError, match=r"MB of names and metadata, above the 32 MB that are read"):
        read_metadata(tmp_path / "x.safetensors")


def test_no_name_in_a_file_is_a_place_on_disk(tmp_path, monkeypatch):
    """Names with path separators are names: a compact file of them is written and read inside the cache alone."""
    monkeypatch.setenv("QRLORA_CACHE", str(tmp_path / "cache"))
    Q = torch.linalg.qr(torch.randn(8, 2)).Q
    header = Header(component="unet", method="qr", rank=2)
    odd = Adapter({"../../up.x": Pair(Q.T.contiguous(), torch.ones(8, 2))}, header)
    save(odd, tmp_path / "x.safetensors", content="compact")
    assert load(tmp_path / "x.safetensors").layers.keys() == odd.layers.keys()
    places = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")}
    assert places == {"cache", "x.safetensors"} and not list(tmp_path.parent.glob("up*"))


def test_reading_warns_of_nothing(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", PAIR, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path / "x.safetensors")


def test_a_fused_pair_that_another_tool_has_changed_is_read_as_it_is(pipes, tmp_path):
    """The header still says which rank is whose, but numbers stand outside: nothing is cut off."""
    adapter = random_adapter(pipes["flux"], "flux")
    save(adapter, tmp_path / "x.safetensors", keys="kohya")
    tensors, metadata = read_safetensors(tmp_path / "x.safetensors")
    name = next(key.removesuffix(".lora_up.weight") for key in tensors if key.endswith("img_attn_qkv.lora_up.weight"))
    A, B = (tensors[f"{name}.lora_{x}.weight"].clone() for x in ("down", "up"))
    B += torch.randn(B.shape, generator=torch.Generator().manual_seed(3))
    write_safetensors(tmp_path / "y.safetensors", {**tensors, f"{name}.lora_up.weight": B}, metadata)
    loaded = load(tmp_path / "y.safetensors")
    rows = (B.double() @ A.double()).split(len(B) // 3)
    for layer, update in zip(("to_q", "to_k", "to_v"), rows, strict=True):
        torch.testing.assert_close(
            loaded.dense(f"transformer_blocks.0.attn.{layer}").double(), update, atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize(
    "fused", ["null", "[]", "5", '{"NAME": 5}', '{"NAME": [1.5, 2, 3]}', '{"NAME": [-2, 6, 2]}', "{"]
)
def test_ranks_of_a_fused_pair_that_are_none_are_refused(pipes, tmp_path, fused):
    save(random_adapter(pipes["flux"], "flux"), tmp_path / "x.safetensors", keys="kohya")
    tensors, metadata = read_safetensors(tmp_path / "x.safetensors")
    name = next(iter(json.loads(metadata["qrlora.fused"])))
    write_safetensors(tmp_path / "x.safetensors", tensors, {**metadata, "qrlora.fused": fused.replace("NAME", name)})
    with pytest.raises(ValueError, match="qrlora.fused"):
        load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("change", ["integers", "another kind", "no digest"])
def test_a_compact_file_of_anything_but_learnt_factors_is_refused(tmp_path, monkeypatch, change):
    monkeypatch.setenv("QRLORA_CACHE", str(tmp_path / "cache"))
    Q = torch.linalg.qr(torch.randn(8, 2)).Q
    pair = {LAYER: Pair(Q.T.contiguous(), torch.ones(8, 2))}
    save(Adapter(pair, Header(component="unet", method="qr", rank=2)), tmp_path / "x.safetensors", content="compact")
    tensors, metadata = read_safetensors(tmp_path / "x.safetensors")
    if change == "integers":
        tensors = {key: x.to(torch.int64) for key, x in tensors.items()}
    elif change == "another kind":
        tensors = {key.replace(".delta", ".alpha"): x for key, x in tensors.items()}
    else:
        told = {**json.loads(metadata["qrlora"]), "basis": "../../x"}
        metadata = {**metadata, "qrlora": json.dumps(told)}
    write_safetensors(tmp_path / "x.safetensors", tensors, metadata)
    with pytest.raises(ValueError, match="compact file"):
        load(tmp_path / "x.safetensors")


ALPHAS = [torch.tensor(math.nan), torch.tensor(math.inf), torch.ones(2), torch.ones(0)]


@pytest.mark.parametrize("alpha", ALPHAS, ids=["nan", "inf", "two", "none"])
def test_an_alpha_that_is_no_number_is_refused_by_load_and_check(tmp_path, alpha):
    tensors = {f"{FLAT}.lora_down.weight": torch.ones(2, 8), f"{FLAT}.lora_up.weight": torch.ones(8, 2)}
    write_safetensors(tmp_path / "x.safetensors", {**tensors, f"{FLAT}.alpha": alpha}, {})
    for read_it in (load, lambda path: check(path, "comfyui")):
        with pytest.raises(ValueError, match="alpha"):
            read_it(tmp_path / "x.safetensors")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_check_refuses_numbers_that_no_tool_can_use(tmp_path, value):
    for key in PAIR:
        damaged = {name: x.clone() for name, x in PAIR.items()}
        damaged[key][0, 0] = value
        write_safetensors(tmp_path / "x.safetensors", damaged, {})
        with pytest.raises(ValueError, match="NaN or infinity"):
            check(tmp_path / "x.safetensors", "diffusers")


def test_a_pattern_that_searches_for_ever_is_refused(tmp_path):
    write_safetensors(
        tmp_path / "adapter_model.safetensors",
        {k.replace("unet.", "base_model.model."): x for k, x in PAIR.items()},
        {},
    )
    for pattern, said in ((r"(.|.)+[^a-z]", "searches"), ("(", "no regular"), ("a" * 2000, "characters")):
        told = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "alpha_pattern": {pattern: 1}}
        (tmp_path / "adapter_config.json").write_text(json.dumps(told))
        with pytest.raises(ValueError, match=said):
            load(tmp_path)
