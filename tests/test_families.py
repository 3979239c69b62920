"""Base models: the real SDXL's shape, its conditions and loss, and every way to name one."""

import json
import logging
import shutil

import pytest
import torch
from torch.nn import functional

import checkpoint
import pico
from qrlora.families import FAMILIES, Base, SizeConditioning, choose_device, choose_dtype, flux, open_base
from qrlora.families.library_messages import libraries_silenced
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


SD3_TRANSFORMERS = {  # transformer/config.json of stabilityai/stable-diffusion-3-medium, -3.5-medium, -3.5-large
    "medium": {"num_layers": 24, "num_attention_heads": 24, "pos_embed_max_size": 192},
    "3.5-medium": {
        "num_layers": 24,
        "num_attention_heads": 24,
        "pos_embed_max_size": 384,
        "dual_attention_layers": tuple(range(13)),
        "qk_norm": "rms_norm",
    },
    "3.5-large": {"num_layers": 38, "num_attention_heads": 38, "pos_embed_max_size": 192, "qk_norm": "rms_norm"},
}
FLUX_TRANSFORMER = {  # transformer/config.json of black-forest-labs/FLUX.1-dev
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
}


@pytest.fixture(scope="module", params=FAMILIES)
def any_base(request):
    """The pico base of each family."""
    return open_base(pico.folder(request.param), "cpu")


@pytest.fixture(scope="module")
def base():
    return open_base(pico.folder(), "cpu")


def real(family, model):
    """A base whose trainable component is on the meta device: every shape, no memory."""
    from types import SimpleNamespace

    pipe = SimpleNamespace(**{FAMILIES[family].component: model})
    return Base(pipe=pipe, family=FAMILIES[family], name=family, defaults=FAMILIES[family].defaults)


@pytest.fixture(scope="module")
def real_sdxl():
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return real("sdxl", UNet2DConditionModel.from_config(SDXL_UNET))


def real_sd3(which):
    from diffusers import SD3Transformer2DModel

    heads = SD3_TRANSFORMERS[which]["num_attention_heads"]
    with torch.device("meta"):
        model = SD3Transformer2DModel(**SD3_TRANSFORMERS[which], caption_projection_dim=64 * heads)
    return real("sd3", model)


@pytest.fixture(scope="module")
def real_flux():
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        return real("flux", FluxTransformer2DModel(**FLUX_TRANSFORMER))


@pytest.mark.parametrize(
    ("which", "preset", "layers"),
    [
        ("medium", "attention", 191),  # eight in each of 24 blocks; the last has nothing to do with words afterwards
        ("3.5-medium", "attention", 191),
        ("3.5-medium", "attention-dual", 191 + 13 * 4),
        ("3.5-large", "attention", 38 * 8 - 1),
    ],
)
def test_real_sd3_has_as_many_attention_layers(which, preset, layers):
    assert len(real_sd3(which).target_layers(preset)) == layers


def test_a_preset_for_a_second_attention_is_refused_where_there_is_none():
    with pytest.raises(ValueError, match="sd3: no linear layer ends in 'attn2.to_q'"):
        real_sd3("medium").target_layers("attention-dual")


def test_real_flux_has_342_layers_of_table_3(real_flux):
    """Twelve names in each of 19 blocks with two streams, q, k and v in each of 38 with one."""
    layers = real_flux.target_layers(real_flux.defaults.targets)
    single = [name for name in layers if name.startswith("single_transformer_blocks")]
    assert (len(layers), len(single)) == (342, 114) == (19 * 12 + 38 * 3, 38 * 3)
    assert len(real_flux.target_layers("attention")) == 266


@pytest.mark.parametrize("family", FAMILIES)
def test_the_papers_settings_are_the_familys_defaults(family):
    own = FAMILIES[family].defaults
    assert (own.rank, own.learning_rate, own.steps, own.batch_size) == (64, 1e-4, 500, 1)
    expected = {
        "sdxl": ("self", 50, 5.0, 1024, "uniform"),
        "sd3": ("attention", 28, 7.0, 1024, "logit-normal"),
        "flux": ("attention-ff", 28, 3.5, 1024, "uniform"),
        "sd15": ("attention", 50, 7.5, 512, "uniform"),
        "qwen_image": ("attention", 50, 4.0, 1024, "uniform"),
        "krea2": ("public-script", 52, 3.5, 1024, "uniform"),
        "flux2": ("attention", 50, 4.0, 1024, "uniform"),
        "z_image": ("attention", 50, 4.0, 1024, "uniform"),
        "wan": ("attention", 50, 5.0, 640, "uniform"),
        "qwen_image_21": ("attention", 40, 1.0, 1024, "uniform"),
    }
    assert (own.targets, own.sample_steps, own.guidance, own.resolution, own.timestep_sampling) == expected[family]


def test_real_sdxl_has_280_self_attention_and_560_attention_layers(real_sdxl):
    assert len(real_sdxl.target_layers("self")) == 280
    assert len(real_sdxl.target_layers("attention")) == 560


@pytest.mark.parametrize("which", ["sdxl", "sd3", "flux"])
def test_an_adapter_lands_on_exactly_the_chosen_layers_of_a_real_model(which, real_sdxl, real_flux):
    """PEFT shortens long lists of layer names to endings; none of them may reach a layer too many."""
    import copy

    from qrlora.adapter import Adapter, Header, Pair
    from qrlora.injection import apply

    chosen = {"sdxl": real_sdxl, "sd3": real_sd3("3.5-medium"), "flux": real_flux}[which]
    model, layers = copy.deepcopy(chosen.model), chosen.target_layers("attention")
    pairs = {n: Pair(A=torch.ones(1, m.in_features), B=torch.ones(m.out_features, 1)) for n, m in layers.items()}
    apply(model, Adapter(layers=pairs, header=Header()), "it")
    assert {name for name, module in model.named_modules() if hasattr(module, "base_layer")} == set(layers)


def test_qr_learns_half_of_loras_parameters_on_real_sdxl(real_sdxl):
    """21.3 M against 42.6 M on the 280 self-attention layers at rank 64: all are square."""
    from qrlora.initialisation_methods import METHODS

    shapes = [tuple(weight.shape) for _, weight in real_sdxl.weights("self")]
    count = {name: sum(m.trainable_parameters(o, i, 64) for o, i in shapes) for name, m in METHODS.items()}
    assert count["qr"] == 21_299_200
    assert count["lora"] == 2 * count["qr"] == 42_598_400


def test_pico_bases_are_under_two_megabytes(any_base):
    """Z-Image's class has an embedder of the time that alone takes one."""
    files = [path for path in pico.folder(any_base.family.name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2e6


def test_pico_keeps_the_shape_of_sdxl(base):
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

        condition = base.encode_prompt(prompts, SizeConditioning((640, 480), (10, 0), (16, 16)))
        ours = denoising_loss(base.family.predict, base.model, base.noising, clean, noise, time, condition)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def flow_draws():
    """Latents, noise and two rows of the scheduler's table of times."""
    generator = torch.Generator().manual_seed(7)
    clean, noise = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    return clean, noise, torch.tensor([30, 720]), ["a dog in <s> style", "a cat"]


def tokens(tokenizer, prompts, length):
    return tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


def flow_loss(base, guess, clean, noise):
    """The public scripts' last lines: the target is noise - x, every time weighs 1, the mean is taken in float32."""
    return functional.mse_loss(guess.float(), (noise - clean).float())


@pytest.mark.parametrize("with_t5", [True, False])
def test_loss_is_that_of_the_public_sd3_dreambooth_training(with_t5):
    """Written from the description of diffusers' script (with --precondition_outputs=0), with nothing of ours in it:
    CLIPs' penultimate states side by side, zeros up to T5's width, T5's states or zeros behind them, both pooled
    states side by side; s from the scheduler's own table; the model reads 1000 s."""
    base = open_base(pico.folder("sd3", with_t5=with_t5), "cpu")
    pipe, (clean, noise, rows, prompts) = base.pipe, flow_draws()
    with torch.no_grad():
        states, pooled = [], []
        for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
            answer = encoder(tokens(tokenizer, prompts, 77), output_hidden_states=True)
            states.append(answer.hidden_states[-2])
            pooled.append(answer[0])
        words = torch.zeros(2, 256, 32)
        if with_t5:
            words = pipe.text_encoder_3(tokens(pipe.tokenizer_3, prompts, 256))[0]
        clip = torch.cat(states, dim=-1)
        text = torch.cat([torch.cat([clip, torch.zeros(2, 77, 32 - clip.shape[-1])], dim=-1), words], dim=1)
        sigma = pipe.scheduler.sigmas[rows].view(-1, 1, 1, 1)
        guess = pipe.transformer(
            hidden_states=(1 - sigma) * clean + sigma * noise,
            timestep=pipe.scheduler.timesteps[rows],
            encoder_hidden_states=text,
            pooled_projections=torch.cat(pooled, dim=-1),
        ).sample
        condition = base.encode_prompt(prompts, SizeConditioning.uncropped(16, 16))
        time = pipe.scheduler.timesteps[rows]
        ours = denoising_loss(base.family.predict, base.model, base.noising, clean, noise, time, condition)
    torch.testing.assert_close(ours, flow_loss(base, guess, clean, noise), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("guidance_embeds", [True, False])
def test_loss_is_that_of_the_public_flux_dreambooth_training(guidance_embeds):
    """Written from the description of diffusers' script, with the pipeline's packing: T5's states, CLIP's pooled one,
    a guidance of 3.5 where the model reads one, time / 1000, each 2 x 2 patch with its place, zeros for words. dev is
    told 512 tokens, schnell 256."""
    base, length = (
        open_base(pico.folder("flux", guidance_embeds=guidance_embeds), "cpu"),
        512 if guidance_embeds else 256,
    )
    pipe, (clean, noise, rows, prompts) = base.pipe, flow_draws()
    with torch.no_grad():
        sigma = pipe.scheduler.sigmas[rows].view(-1, 1, 1, 1)
        noisy = (1 - sigma) * clean + sigma * noise
        guess = pipe.transformer(
            hidden_states=pipe._pack_latents(noisy, 2, 4, 8, 8),
            timestep=pipe.scheduler.timesteps[rows] / 1000,
            guidance=torch.tensor([3.5, 3.5]) if guidance_embeds else None,
            pooled_projections=pipe.text_encoder(tokens(pipe.tokenizer, prompts, 77)).pooler_output,
            encoder_hidden_states=pipe.text_encoder_2(tokens(pipe.tokenizer_2, prompts, length))[0],
            txt_ids=torch.zeros(length, 3),
            img_ids=pipe._prepare_latent_image_ids(2, 4, 4, "cpu", torch.float32),
        ).sample
        guess = pipe._unpack_latents(guess, 16, 16, pipe.vae_scale_factor)
        condition = base.encode_prompt(prompts, SizeConditioning.uncropped(16, 16))
        time = pipe.scheduler.timesteps[rows]
        ours = denoising_loss(base.family.predict, base.model, base.noising, clean, noise, time, condition)
    torch.testing.assert_close(ours, flow_loss(base, guess, clean, noise), rtol=1e-5, atol=1e-6)


def test_latents_are_packed_as_the_flux_pipeline_packs_them():
    """Also where height and width differ, which a square picture would not show."""
    from diffusers import FluxPipeline

    latents = torch.randn(2, 4, 6, 10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(flux.packed(latents), FluxPipeline._pack_latents(latents, 2, 4, 6, 10))
    ids = FluxPipeline._prepare_latent_image_ids(2, 3, 5, "cpu", torch.float32)
    assert torch.equal(flux.patch_positions(3, 5), ids)


def test_a_base_that_knows_one_size_is_always_conditioned_on_uncropped_images(tmp_path):
    shutil.copytree(pico.folder(), tmp_path / "b")
    (tmp_path / "b" / "qrlora.json").write_text(json.dumps({"framing": "plain"}))
    base = open_base(tmp_path / "b", "cpu")
    assert base.size_conditioning((640, 480), (10, 0), (16, 16)) == SizeConditioning.uncropped(16, 16)


def test_a_folders_own_defaults_win_over_the_familys(base):
    assert (base.defaults.rank, base.defaults.sample_steps) == (4, pico.DEFAULTS["sample"]["steps"])


def test_schnell_draws_in_4_steps_and_reads_256_tokens_unless_its_noise_is_shifted_as_devs(tmp_path):
    """A base that was freed from dev's distillation reads no guidance either, but is no schnell."""
    folder = tmp_path / "b"
    shutil.copytree(pico.folder("flux", guidance_embeds=False), folder, ignore=shutil.ignore_patterns("qrlora.json"))
    own = open_base(folder, "cpu").defaults
    assert (own.sample_steps, own.guidance, own.rank) == (4, 1.0, 64)
    (folder / "qrlora.json").write_text('{"defaults": {"sample": {"guidance": 3}}}')
    schnell = open_base(folder, "cpu")
    assert (schnell.defaults.sample_steps, schnell.defaults.guidance) == (4, 3)
    levels = folder / "scheduler" / "scheduler_config.json"
    levels.write_text(json.dumps(json.loads(levels.read_text()) | {"use_dynamic_shifting": True}))
    freed = open_base(folder, "cpu")
    assert (freed.defaults.sample_steps, freed.defaults.guidance) == (28, 3)
    read = [
        x.encode_prompt(["a dog"], SizeConditioning.uncropped(16, 16)).tensors["text"].shape[1]
        for x in (schnell, freed)
    ]
    assert read == [256, 512]


def test_nothing_of_an_open_base_learns(any_base):
    parts = [part for part in any_base.pipe.components.values() if hasattr(part, "parameters")]
    assert not any(p.requires_grad for part in parts for p in part.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_released_parts_are_gone(family):
    base = open_base(pico.folder(family), "cpu")
    names = (*FAMILIES[family].text_encoders, "vae")
    assert tuple(base.encoders_and_vae) == names and base.missing_components == []
    base.release()
    assert base.encoders_and_vae == {} and all(getattr(base.pipe, name) is None for name in names)
    assert base.missing_components == [name for name in names if name != "text_encoder_3"]


def test_sd3_without_t5_misses_nothing_and_reads_zeros_in_its_place():
    """As the pipeline does; and a folder whose tokenizer is there while the encoder is not is read the same."""
    with_t5, without = (open_base(pico.folder("sd3", with_t5=x), "cpu") for x in (True, False))
    assert without.missing_components == [] and "text_encoder_3" not in without.encoders_and_vae
    told, full = (
        x.encode_prompt(["a dog"], SizeConditioning.uncropped(16, 16)).tensors["text"] for x in (without, with_t5)
    )
    assert told.shape == full.shape and not told[:, 77:].any() and full[:, 77:].any()
    torch.testing.assert_close(told[:, :77], full[:, :77])


@pytest.mark.parametrize(("family", "part"), [("sd3", "text_encoder_2"), ("flux", "text_encoder_2")])
def test_a_base_without_a_part_that_it_needs_is_refused(tmp_path, family, part):
    copy = tmp_path / "b"
    shutil.copytree(pico.folder(family), copy)
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, part: [None, None]}))
    refused(copy, ValueError, f"b has no {part}, which every {family} base needs")


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


def write_single_file(family, folder, without=()):
    """A checkpoint in the names of the original release, without the parts whose names begin so; its path."""
    pipe = open_base(pico.folder(family), "cpu").pipe
    tensors = {name: x for name, x in getattr(checkpoint, family)(pipe).items() if not name.startswith(without)}
    checkpoint.write(tensors, folder / "model.safetensors")
    return folder / "model.safetensors"


def assert_same_base(single, base):
    for part in (base.family.component, *base.encoders_and_vae):
        ours, theirs = (getattr(x.pipe, part).state_dict() for x in (single, base))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours), part
    size_conditioning = SizeConditioning.uncropped(16, 16)
    told, expected = (x.encode_prompt(["a <c>"], size_conditioning).tensors for x in (single, base))
    for key in expected:
        torch.testing.assert_close(told[key], expected[key])


@pytest.mark.parametrize("family", ["sdxl", "sd3", "sd15"])
def test_a_single_file_checkpoint_is_the_same_base(family, tmp_path):
    """In the names of the original release; configs and tokenizers from the folder beside it."""
    path = write_single_file(family, tmp_path)
    without_weights = shutil.ignore_patterns("*.safetensors", "qrlora.json")
    shutil.copytree(pico.folder(family), tmp_path / "model", ignore=without_weights)
    single, base = open_base(path, "cpu"), open_base(pico.folder(family), "cpu")
    assert single.family is base.family and single.defaults == FAMILIES[family].defaults
    assert_same_base(single, base)


PARTS = {**FAMILIES["sd3"].text_encoders, "vae": "first_stage_model."}


@pytest.mark.parametrize("part", PARTS)
def test_what_a_single_file_lacks_comes_from_the_folder_beside_it(tmp_path, part):
    """As SD3's and FLUX's transformer alone are shared. What is in neither is named, in one line with the way out."""
    path, base = write_single_file("sd3", tmp_path, tuple(PARTS.values())), open_base(pico.folder("sd3"), "cpu")
    shutil.copytree(pico.folder("sd3"), tmp_path / "model")
    assert_same_base(open_base(path, "cpu"), base)
    (weights,) = (tmp_path / "model" / part).glob("*.safetensors")
    weights.unlink()
    kind = type(getattr(base.pipe, part)).__name__
    refused(path, ValueError, f"not a whole base model .*{kind}.*put a whole diffusers pipeline .*/model$")
    shutil.rmtree(tmp_path / "model" / part)
    refused(path, OSError, f"its {part} is missing: .*/model/{part} is no folder, or empty")


def test_a_single_file_is_without_t5_if_the_folder_beside_it_is(tmp_path):
    path = write_single_file("sd3", tmp_path, "text_encoders.t5xxl")
    without_weights = shutil.ignore_patterns("*.safetensors", "qrlora.json")
    shutil.copytree(pico.folder("sd3", with_t5=False), tmp_path / "model", ignore=without_weights)
    assert_same_base(open_base(path, "cpu"), open_base(pico.folder("sd3", with_t5=False), "cpu"))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_a_transformer_alone_is_known_by_its_names(family, prefix, tmp_path):
    """With nothing beside it, its family's configs are looked for on the hub."""
    names = ["joint_blocks.0.context_block.adaLN_modulation.1.weight"]
    if family == "flux":
        names = ["double_blocks.0.img_attn.norm.key_norm.scale", "vector_in.in_layer.weight"]
    checkpoint.write({prefix + name: torch.zeros(1) for name in names}, tmp_path / "alone.safetensors")
    refused(tmp_path / "alone.safetensors", OSError, "the hub cannot be reached")


def test_a_cut_or_lonely_single_file_is_refused(tmp_path):
    write_single_file("sdxl", tmp_path)
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
    (tmp_path / "model_index.json").write_text('{"_class_name": "PixArtAlphaPipeline"}')
    refused(tmp_path, ValueError, "PixArtAlphaPipeline, which is not supported; supported: .*StableDiffusionXLPipeline")
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


def test_numbers_are_halved_on_gpus_alone_in_the_type_they_are_fast_at(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for fast in (True, False):
        monkeypatch.setattr("qrlora.devices.has_fast_bfloat16", lambda device, fast=fast: fast)
        assert choose_dtype("auto", gpu) == (torch.bfloat16 if fast else torch.float16)
        assert choose_dtype("auto", cpu) == torch.float32 and choose_dtype("bfloat16", cpu) == torch.bfloat16


def test_a_device_or_dtype_that_is_not_there_is_refused(tmp_path):
    for device in ("cuda:77", "gpu"):
        with pytest.raises(ValueError, match=f"no device '{device}'"):
            choose_device(device)
    with pytest.raises(ValueError, match="dtype must be auto or one of float32"):
        open_base(pico.folder(), "cpu", "int8")


@pytest.mark.parametrize("level", [logging.NOTSET, logging.CRITICAL])
def test_what_a_program_has_silenced_stays_so_after_a_base_is_opened(level):
    logging.disable(level)
    try:
        with libraries_silenced():
            assert not logging.getLogger("any").isEnabledFor(logging.WARNING)
        assert logging.root.manager.disable == level
    finally:
        logging.disable(logging.NOTSET)
