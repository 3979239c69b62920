"""PEFT's LoRAs are read as what they do to the base's weights, or refused by name."""

import json
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model

import pico
from commands import run
from qrlora.compat import check
from qrlora.files import load, read_header
from qrlora.safetensors_files import read_safetensors, write_safetensors

TARGETS = ["attn1.to_q", "attn2.to_k", "ff.net.2"]
OUTSIDE = [True, False, "gaussian", "orthogonal", "mica"]
WITHIN = ["pissa", "olora", "OLoRA"]


def folder_of(path, init, **config):
    """A folder that PEFT wrote of a LoRA that has learnt on the pico UNet, and {layer: what it does to the weight}."""
    model = pico.unet()
    torch.manual_seed(1)
    for layer in model.modules():  # as learnt weights, whose strongest directions stand out
        if isinstance(layer, torch.nn.Linear):
            layer.weight.data *= 10
    before = {name: layer.weight.clone() for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    told = {"r": 4, "lora_alpha": 6, "target_modules": TARGETS, "init_lora_weights": init, **config}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(model, LoraConfig(**told))
    changes = {}
    for name, layer in wrapped.base_model.model.named_modules():
        if hasattr(layer, "lora_B"):
            for factor in (layer.lora_A, layer.lora_B):
                factor["default"].weight.data += 0.02 * torch.randn_like(factor["default"].weight)
            now = layer.base_layer.weight + layer.get_delta_weight("default")
            changes[name] = (now - before[name]).detach()
    wrapped.save_pretrained(path)
    return changes, before


def assert_changes(adapter, changes):
    assert adapter.layers.keys() == changes.keys()
    for layer, change in changes.items():
        torch.testing.assert_close(adapter.dense(layer), change, atol=2e-5, rtol=1e-4)


PATTERNS = {"rank_pattern": {"to_q": 2}, "alpha_pattern": {r"down_blocks\.1.*to_q": 3, "^mid_block.*to_k": 8}}


@pytest.mark.parametrize("more", [{}, {"use_rslora": True}, PATTERNS], ids=["alpha / r", "rslora", "patterns"])
@pytest.mark.parametrize("init", OUTSIDE)
def test_a_start_beside_the_weight_is_read_as_it_is(tmp_path, init, more):
    changes, _ = folder_of(tmp_path / "peft", init, **more)
    assert_changes(load(tmp_path / "peft"), changes)


@pytest.mark.parametrize("more", [{}, {"use_rslora": True}, PATTERNS], ids=["alpha / r", "rslora", "patterns"])
@pytest.mark.parametrize("init", WITHIN)
def test_a_start_within_the_weight_is_taken_off_with_the_base_s_own_weights(tmp_path, init, more):
    """PEFT has written W - s B_0 A_0 into the base, so that the file is W's change only together with s B_0 A_0."""
    changes, weights = folder_of(tmp_path / "peft", init, **more)
    with pytest.raises(ValueError, match=rf"init_lora_weights='{init}'.*within the weight.*--base BASE"):
        load(tmp_path / "peft")
    adapter = load(tmp_path / "peft", weights=weights.__getitem__)
    assert_changes(adapter, changes)
    assert adapter.rank == 8
    with pytest.raises(ValueError, match="within the weight"):
        check(tmp_path / "peft", "comfyui")


def test_a_start_that_is_not_the_given_base_s_is_refused(tmp_path):
    _, weights = folder_of(tmp_path / "peft", "pissa")
    generator = torch.Generator().manual_seed(5)
    others = {name: torch.randn(x.shape, generator=generator) * x.std() for name, x in weights.items()}
    with pytest.raises(ValueError, match="another base"):
        load(tmp_path / "peft", weights=others.__getitem__)
    with pytest.raises(ValueError, match=r"attn1.to_q: .* is for a weight \(12, 12\), the base's is \(3, 3\)"):
        load(tmp_path / "peft", weights=lambda layer: torch.ones(3, 3))


REFUSED = {
    "corda": {"init_lora_weights": "corda"},
    "lora_ga": {"init_lora_weights": "lora_ga"},
    "loftq": {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}},
    "pissa_niter_16": {"init_lora_weights": "pissa_niter_16"},
    "milora": {"init_lora_weights": "milora"},
    "a list": {"init_lora_weights": ["pissa"]},
    "use_dora": {"use_dora": True},
    "kasa_config": {"kasa_config": {"beta": 1e-4}},
    "monteclora_config": {"monteclora_config": {"monteclora_n": 8}},
    "alora_invocation_tokens": {"alora_invocation_tokens": [1, 2]},
    "arrow_config": {"arrow_config": {"top_k": 1}},
    "use_bdlora": {"use_bdlora": {"nblocks": 2}},
    "use_qalora": {"use_qalora": True},
    "lora_bias": {"lora_bias": True},
    "layer_replication": {"layer_replication": [[0, 1], [0, 2]]},
    "target_parameters": {"target_parameters": ["experts.down_proj"]},
    "ADALORA": {"peft_type": "ADALORA"},
    "some_new_variant": {"some_new_variant": {"on": True}},
}


@pytest.mark.parametrize(("name", "change"), REFUSED.items(), ids=REFUSED.keys())
def test_what_is_not_b_a_beside_the_weight_is_refused_by_name(tmp_path, name, change):
    """With and without a base; and in the metadata that diffusers writes, too."""
    _, weights = folder_of(tmp_path / "peft", True)
    config = tmp_path / "peft" / "adapter_config.json"
    told = {**json.loads(config.read_text()), **change}
    config.write_text(json.dumps(told))
    said = next(iter(change)) if name == "a list" else name
    for base in (None, weights.__getitem__):
        with pytest.raises(ValueError, match=rf"adapter_model.safetensors: .*{said}"):
            load(tmp_path / "peft", weights=base)
    tensors, _ = read_safetensors(tmp_path / "peft" / "adapter_model.safetensors")
    ours = {key.replace("base_model.model.", "unet."): x for key, x in tensors.items()}
    entries = {f"unet.{key}": value for key, value in told.items()}
    write_safetensors(tmp_path / "d.safetensors", ours, {"lora_adapter_metadata": json.dumps(entries)})
    with pytest.raises(ValueError, match=rf"d.safetensors: .*{said}"):
        load(tmp_path / "d.safetensors")


@pytest.mark.parametrize("change", [{"init_lora_weights": "eva"}, {"qalora_group_size": 4}, {"some_new_word": None}])
def test_what_does_not_touch_the_update_is_read(tmp_path, change):
    changes, _ = folder_of(tmp_path / "peft", True)
    config = tmp_path / "peft" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    assert_changes(load(tmp_path / "peft"), changes)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_diffusers_metadata_and_kohyas_arguments_tell_the_start_too(tmp_path, init):
    changes, weights = folder_of(tmp_path / "peft", init, lora_alpha=4)
    tensors, _ = read_safetensors(tmp_path / "peft" / "adapter_model.safetensors")
    ours = {key.replace("base_model.model.", "unet."): x for key, x in tensors.items()}
    told = {"unet.r": 4, "unet.lora_alpha": 4, "unet.init_lora_weights": init}
    write_safetensors(tmp_path / "d.safetensors", ours, {"lora_adapter_metadata": json.dumps(told)})
    write_safetensors(
        tmp_path / "k.safetensors", ours, {"ss_network_args": json.dumps({"initialize": init, "conv_dim": "4"})}
    )
    for name in ("d", "k"):
        with pytest.raises(ValueError, match=f"{name}.safetensors: .*{init}.*within the weight"):
            load(tmp_path / f"{name}.safetensors")
        assert_changes(load(tmp_path / f"{name}.safetensors", weights=weights.__getitem__), changes)


def test_convert_with_a_base_writes_a_plain_lora(tmp_path, capsys):
    """On the command line, with the weights of a base that is opened for them."""
    base = pico.folder("sdxl")
    from qrlora.families import open_base

    model = open_base(base, "cpu").model
    before = {n: x.weight.clone() for n, x in model.named_modules() if isinstance(x, torch.nn.Linear)}
    wrapped = get_peft_model(model, LoraConfig(r=4, init_lora_weights="pissa", target_modules=["attn1.to_q"]))  # type: ignore[arg-type]
    changes = {}
    for name, layer in wrapped.base_model.model.named_modules():
        if hasattr(layer, "lora_B"):
            layer.lora_B["default"].weight.data *= 1.05
            now = layer.base_layer.weight + layer.get_delta_weight("default")
            changes[name] = (now - before[name]).detach()
    wrapped.save_pretrained(tmp_path / "peft")
    assert run(capsys, "convert", tmp_path / "peft", tmp_path / "no.safetensors")[0] == 2
    assert not (tmp_path / "no.safetensors").exists()
    code, out, err = run(capsys, "convert", tmp_path / "peft", tmp_path / "out.safetensors", "--base", base)
    assert code == 0, err
    loaded = load(tmp_path / "out.safetensors")
    assert_changes(loaded, changes)
    assert read_header(tmp_path / "out.safetensors").method == "lora"
