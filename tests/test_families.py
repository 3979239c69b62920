"""Base models: the real SDXL's shape, its conditions and loss, and every way to name one."""

import json
import shutil

import pytest
import torch
from torch.nn import functional

import checkpoint
import pico
from qrlora.families import FAMILIES, Framing, choose_device, open_base
from qrlora.training import denoising_loss

SDXL_UNET = {  # unet/config.json of stabilityai/stable-diffusion-xl-base-1.0
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "in_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}


@pytest.fixture(scope="module")
def base():
    return open_base(pico.folder(), "cpu")


@pytest.fixture(scope="module")
def real_sdxl(base):
    """The real SDXL UNet on the meta device: every shape, no memory."""
    import dataclasses
    from types import SimpleNamespace

    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(SDXL_UNET)
    return dataclasses.replace(base, pipe=SimpleNamespace(unet=unet), defaults=FAMILIES["sdxl"].defaults)


def test_real_sdxl_has_280_self_attention_and_560_attention_layers(real_sdxl):
    assert len(real_sdxl.target_layers("self")) == 280
    assert len(real_sdxl.target_layers("attention")) == 560


def test_an_adapter_lands_on_exactly_the_560_layers_of_real_sdxl(real_sdxl):
    """PEFT shortens long lists of layer names to endings; none of them may reach a layer too many."""
    import copy

    from qrlora.adapter import Adapter, Header, Pair
    from qrlora.attach import attach

    unet, layers = copy.deepcopy(real_sdxl.model), real_sdxl.target_layers("attention")
    pairs = {n: Pair(A=torch.ones(1, m.in_features), B=torch.ones(m.out_features, 1)) for n, m in layers.items()}
    attach(unet, Adapter(layers=pairs, header=Header()), "it")
    assert {name for name, module in unet.named_modules() if hasattr(module, "lora_A")} == set(layers)


def test_qr_learns_half_of_loras_parameters_on_real_sdxl(real_sdxl):
    """21.3 M against 42.6 M on the 280 self-attention layers at rank 64: all are square."""
    from qrlora.methods import METHODS

    shapes = [tuple(weight.shape) for _, weight in real_sdxl.weights("self")]
    count = {name: sum(m.trainable_parameters(o, i, 64) for o, i in shapes) for name, m in METHODS.items()}
    assert count["qr"] == 21_299_200
    assert count["lora"] == 2 * count["qr"] == 42_598_400


def test_papers_settings_are_sdxls_defaults(real_sdxl):
    own = real_sdxl.defaults
    assert (own.rank, own.learning_rate, own.steps, own.sample_steps, own.targets) == (64, 1e-4, 500, 50, "self")


def test_pico_keeps_the_shape_of_sdxl_in_under_a_megabyte(base):
    files = [path for path in pico.folder().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1e6
    layers = base.target_layers("self")
    assert any(name.startswith("up_blocks.0.attentions.1.") for name in layers)
    assert not any(name.startswith(("down_blocks.0", "up_blocks.2")) for name in layers)


def test_endings_match_whole_dotted_parts(base):
    chosen = base.target_layers("attn1.to_q, to_out.0")
    assert chosen and all(name.endswith((".attn1.to_q", ".to_out.0")) for name in chosen)
    assert "attn2.to_q" not in {name.split("transformer_blocks.0.")[-1] for name in chosen}
    with pytest.raises(ValueError, match="ends in 'o_q'; presets of targets: self, attention"):
        base.target_layers("o_q")


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_loss_is_that_of_the_public_sdxl_dreambooth_training(prediction_type):
    """Written from the description of diffusers' script, with nothing of ours in it: both encoders' penultimate hidden
    states are concatenated, the pooled embedding is the second's, time ids are original size, crop and target size,
    the noisy latent is DDPM's, the target is the noise or the velocity, the loss the mean squared error in float32."""
    from diffusers import DDPMScheduler

    base = open_base(pico.folder(prediction_type=prediction_type), "cpu")
    pipe, generator = base.pipe, torch.Generator().manual_seed(7)
    clean, noise = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    time = torch.tensor([17, 803])
    prompts = ["a dog in <s> style", "a cat"]

    with torch.no_grad():
        states, pooled = [], None
        for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
            tokens = tokenizer(
                prompts,
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
            answer = encoder(tokens.input_ids, output_hidden_states=True)
            states.append(answer.hidden_states[-2])
            pooled = answer[0]
        time_ids = torch.tensor([[640, 480, 10, 0, 16, 16]] * 2, dtype=torch.float32)
        scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
        guess = pipe.unet(
            scheduler.add_noise(clean, noise, time),
            time,
            encoder_hidden_states=torch.cat(states, dim=-1),
            added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
        ).sample
        target = noise if prediction_type == "epsilon" else scheduler.get_velocity(clean, noise, time)
        expected = functional.mse_loss(guess.float(), target.float(), reduction="mean")

        condition = base.encode_prompt(prompts, Framing((640, 480), (10, 0), (16, 16)))
        ours = denoising_loss(base.family.predict, base.model, base.noising, clean, noise, time, condition)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_latents_are_the_vaes_scaled_as_the_pipeline_unscales_them(base):
    """decode(encode_image(x) / scaling_factor) is the VAE's own reconstruction of x."""
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vae = base.pipe.vae
    with torch.no_grad():
        theirs = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
        ours = vae.decode(base.encode_image(pixels) / vae.config.scaling_factor).sample
    torch.testing.assert_close(ours, theirs)


def test_a_half_precision_base_encodes_pictures_in_float32():
    base = open_base(pico.folder(), "cpu", "bfloat16")
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = base.encode_image(pixels)
    assert latents.dtype == torch.float32 and base.pipe.vae.dtype == torch.bfloat16
    assert not torch.equal(latents, latents.bfloat16().float())


def test_a_base_with_one_framing_is_never_told_another(tmp_path):
    shutil.copytree(pico.folder(), tmp_path / "b")
    (tmp_path / "b" / "qrlora.json").write_text(json.dumps({"framing": "plain"}))
    base = open_base(tmp_path / "b", "cpu")
    assert base.framing(original=(640, 480), corner=(10, 0), target=(16, 16)) == Framing.plain(16, 16)


def test_a_folders_own_defaults_win_over_the_familys(base):
    assert (base.defaults.rank, base.defaults.sample_steps) == (4, pico.DEFAULTS["sample"]["steps"])


def test_nothing_of_an_open_base_learns(base):
    assert not any(
        p.requires_grad
        for part in base.pipe.components.values()
        if hasattr(part, "parameters")
        for p in part.parameters()
    )


def test_released_parts_are_gone_and_parked_ones_come_back():
    base = open_base(pico.folder(), "cpu")
    base.park()
    base.unpark()
    assert set(base.spare_parts) == {"text_encoder", "text_encoder_2", "vae"}
    base.release()
    assert base.spare_parts == {} and base.pipe.vae is None and base.pipe.text_encoder_2 is None


def refused(name, kind, match, **how):
    with pytest.raises(kind, match=match) as caught:
        open_base(name, "cpu", **how)
    assert "\n" not in str(caught.value)


def test_a_name_that_means_nothing_is_refused_in_one_line(tmp_path):
    refused("tiny-sdlx", OSError, "no built-in name|neither a built-in name")
    refused("./no/such/place", OSError, "neither a built-in name, a file or folder, nor a hub's")
    refused(tmp_path, OSError, "it has no model_index.json")
    refused("a b/c?", OSError, "neither a file or folder nor a possible hub name")


def test_a_hub_name_without_a_network_is_refused_in_one_line():
    """With the hub's own offline switch: the same answer as without a network, without its retries."""
    refused("nobody/no-such-model", OSError, "not on this machine, and the hub cannot be reached")


def test_a_single_file_checkpoint_is_the_same_base(base, tmp_path):
    """In the names of the original release; configs and tokenizers from the folder beside it."""
    checkpoint.write(base.pipe, tmp_path / "model.safetensors")
    without_weights = shutil.ignore_patterns("*.safetensors", "qrlora.json")
    shutil.copytree(pico.folder(), tmp_path / "model", ignore=without_weights)
    single = open_base(tmp_path / "model.safetensors", "cpu")
    assert single.family is base.family and single.defaults == FAMILIES["sdxl"].defaults
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        ours, theirs = getattr(single.pipe, part).state_dict(), getattr(base.pipe, part).state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    framing = Framing.plain(16, 16)
    told, expected = (x.encode_prompt(["a <c>"], framing).tensors for x in (single, base))
    assert all(torch.equal(told[key], expected[key]) for key in expected)

    whole = (tmp_path / "model.safetensors").read_bytes()
    for share in (0.0, 0.001, 0.3, 0.999):
        (tmp_path / "model.safetensors").write_bytes(whole[: int(share * len(whole))])
        refused(tmp_path / "model.safetensors", ValueError, "model.safetensors: not a whole safetensors file")
    (tmp_path / "alone.safetensors").write_bytes(whole)
    refused(tmp_path / "alone.safetensors", OSError, "the hub cannot be reached")


def test_files_that_are_no_base_model_are_refused(tmp_path):
    for name, content, match in (
        ("x.ckpt", b"\x80\x02", "give a pipeline's folder or a .safetensors checkpoint"),
        ("x.safetensors", b"\xff" * 100, "not a whole safetensors file"),
        ("x.safetensors", (8).to_bytes(8, "little") + b"{}      ", "an adapter is no base model"),
    ):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, ValueError, match)


def test_a_broken_or_foreign_folder_is_refused(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    refused(
        tmp_path, ValueError, "StableDiffusionPipeline, which is not supported; supported: StableDiffusionXLPipeline"
    )
    (tmp_path / "model_index.json").write_text("{")
    refused(tmp_path, ValueError, "not readable as JSON")
    copy = tmp_path / "b"
    shutil.copytree(pico.folder(), copy)
    (copy / "qrlora.json").write_text('{"defaults": {"train": {"rnk": 3}}}')
    refused(copy, ValueError, "qrlora.json: no setting 'rnk'; did you mean 'rank'")


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_a_folder_with_a_part_cut_or_gone_is_refused(tmp_path, part):
    """Also if a pickle lies beside: only safetensors are read."""
    copy = tmp_path / "b"
    shutil.copytree(pico.folder(), copy)
    (weights,) = (copy / part).glob("*.safetensors")
    for keep in (5000, 0):
        weights.write_bytes(weights.read_bytes()[:keep])
        refused(copy, ValueError, f"{part}/.*not a whole safetensors file")
    weights.unlink()
    torch.save({}, copy / part / "pytorch_model.bin")
    torch.save({}, copy / part / "diffusion_pytorch_model.bin")
    refused(copy, OSError, "no file named")
    shutil.rmtree(copy / "tokenizer_2")
    refused(copy, OSError, "its tokenizer_2 is missing")


def test_a_device_or_dtype_that_is_not_there_is_refused(tmp_path):
    for device in ("cuda:77", "gpu"):
        with pytest.raises(ValueError, match=f"no device '{device}'"):
            choose_device(device)
    with pytest.raises(ValueError, match="dtype must be one of float32"):
        open_base(pico.folder(), "cpu", "int8")
