"""Bases that differ from their family's: those that predict something else, are made for other inputs, or are spelt
otherwise. Each opens as what it is, or is refused in one line."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import pico
from qrlora.families import FAMILIES, open_base
from qrlora.families.base_without_weights import blank_base
from qrlora.families.model_dtype import cast_model
from qrlora.noising import noising_of
from qrlora.sampling import generate
from test_families import assert_same_base, refused
from test_single_file import changed, narrow_flux, one_file  # noqa: F401


def with_metadata(path, **metadata):
    """The file, with metadata."""
    save_file(load_file(path), path, {f"modelspec.{key}": value for key, value in metadata.items()})


def config_of(path, part, **changes):
    """A JSON file of a folder, changed."""
    file = path / part
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


PREDICTS = {  # what the file holds -> what is predicted, whether the last step is pure noise
    "nothing": ({}, {}, "epsilon", False),
    "v_pred": ({"v_pred": torch.zeros(0)}, {}, "v_prediction", False),
    "v_pred, ztsnr": ({"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, {}, "v_prediction", True),
    "ztsnr": ({"ztsnr": torch.zeros(0)}, {}, "epsilon", True),
    "modelspec v": ({}, {"prediction_type": "v"}, "v_prediction", False),
    "modelspec v_prediction": ({}, {"prediction_type": "v_prediction"}, "v_prediction", False),
    "modelspec epsilon": ({}, {"prediction_type": "epsilon"}, "epsilon", False),
}


@pytest.mark.parametrize(("tensors", "metadata", "kind", "zero"), PREDICTS.values(), ids=PREDICTS.keys())
def test_a_file_that_says_what_it_predicts_is_trained_and_drawn_so(one_file, tensors, metadata, kind, zero):  # noqa: F811
    path = one_file("sdxl")
    changed(path, lambda held: held.update(tensors))
    with_metadata(path, **metadata)
    base = open_base(path, "cpu")
    assert base.noising.name == kind and base.pipe.scheduler.config.prediction_type == kind
    told = {"prediction_type": kind, **({"rescale_betas_zero_snr": True} if zero else {})}
    expected = pico.sdxl(**told)
    x, noise, time = torch.randn(3, 2, 1), torch.randn(3, 2, 1), torch.tensor([5, 500, 999])
    ours, theirs = (f.add_noise(x, noise, time) for f in (base.noising, noising_of(expected.scheduler.config)))
    assert torch.equal(ours, theirs)
    assert torch.equal(ours[2], noise[2]) is zero
    scheduler = expected.scheduler
    base.pipe.scheduler.set_timesteps(4), scheduler.set_timesteps(4)
    assert torch.equal(base.pipe.scheduler.sigmas, scheduler.sigmas)


@pytest.mark.parametrize("tensors", [("edm_mean", "edm_std"), ("edm_vpred.sigma_max", "edm_vpred.sigma_min", "v_pred")])
def test_a_file_of_continuous_noise_levels_is_refused(one_file, tensors):  # noqa: F811
    path = one_file("sdxl")
    changed(path, lambda held: held.update({name: torch.ones(1) for name in tensors}))
    refused(path, ValueError, f"{tensors[0]}.*noise levels")


def test_a_prediction_that_is_not_known_or_contradicts_the_folder_is_refused(one_file):  # noqa: F811
    path = one_file("sdxl")
    with_metadata(path, prediction_type="x0")
    refused(path, ValueError, "modelspec.prediction_type.*'x0'")
    with_metadata(path, prediction_type="epsilon")
    config_of(path.with_suffix(""), "scheduler/scheduler_config.json", prediction_type="v_prediction")
    refused(path, ValueError, "epsilon.*v_prediction.*scheduler_config.json")
    with_metadata(path)
    assert open_base(path, "cpu").noising.name == "v_prediction"


FOREIGN = (
    {"_class_name": "EDMEulerScheduler", "sigma_data": 0.5},
    {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_data": 0.5},
    {"_class_name": "EulerDiscreteScheduler", "beta_schedule": "scaled_linear", "timestep_type": "continuous"},
    {"_class_name": "CosineDPMSolverMultistepScheduler", "sigma_max": 500},
    {"_class_name": "KarrasVeScheduler"},
    {"_class_name": "ScoreSdeVeScheduler"},
    {"_class_name": "CMStochasticIterativeScheduler", "beta_schedule": "linear"},
    {"_class_name": "CogVideoXDDIMScheduler", "beta_schedule": "scaled_linear", "snr_shift_scale": 3.0},
    {"_class_name": "UniPCMultistepScheduler", "beta_schedule": "linear", "use_flow_sigmas": True},
    {"_class_name": "DPMSolverMultistepScheduler", "beta_schedule": "linear", "prediction_type": "flow_prediction"},
    {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "prediction_type": "sample"},
    {"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True},
    {"_class_name": "FlowMatchSomethingNewScheduler", "shift": 3.0},
    {"_class_name": "SomethingNewScheduler", "beta_schedule": "linear"},
    {"timestep_type": "continuous", "beta_schedule": "linear"},
    {"sigma_data": 0.5, "prediction_type": "epsilon"},
)


@pytest.mark.parametrize("config", FOREIGN, ids=lambda x: x.get("_class_name", "without a class"))
def test_a_scheduler_of_other_times_is_refused_by_name(config):
    with pytest.raises(ValueError, match="cannot train") as error:
        noising_of(config)
    words = [config.get("_class_name", "\0"), "continuous", "flow_sigmas", "flow_prediction", "'sample'", "sigma_data"]
    assert any(word in str(error.value) for word in [*words, "invert_sigmas"]) and "\n" not in str(error.value)


def with_channels(family, channels):
    """A pico pipeline whose model reads so many channels."""
    pipe = pico.BASES[family]()
    part = FAMILIES[family].component
    config = {**getattr(pipe, part).config, "in_channels": channels}
    if family == "sd3":
        config["out_channels"] = 4
    if family == "flux":
        config["out_channels"] = 16
    pipe.register_modules(**{part: type(getattr(pipe, part)).from_config(config)})
    return pipe


INPUTS = {"sdxl": [8, 9], "sd3": [8, 9], "flux": [32, 96]}  # instruct-pix2pix and inpainting; FLUX control and fill


@pytest.mark.parametrize(("family", "channels"), [(f, c) for f, many in INPUTS.items() for c in many])
def test_a_base_made_for_another_input_is_refused_at_opening(tmp_path, family, channels):
    with_channels(family, channels).save_pretrained(tmp_path / "base")
    read = channels // 4 if family == "flux" else channels
    refused(tmp_path / "base", ValueError, f"reads {read} channels.*VAE.* 4.*inpainting")
    with pytest.raises(ValueError, match=f"reads {read} channels"):
        blank_base(str(tmp_path / "base"))


def test_one_file_made_for_another_input_is_refused_at_opening(one_file, tmp_path):  # noqa: F811
    path, name = one_file("sdxl"), "model.diffusion_model.input_blocks.0.0.weight"
    changed(path, lambda held: held.update({name: torch.cat([held[name]] * 2, 1)}))
    config_of(tmp_path / "model", "unet/config.json", in_channels=8)
    refused(path, ValueError, "reads 8 channels")


def test_a_model_that_predicts_more_channels_than_its_latents_have_is_refused(tmp_path):
    pipe = pico.sdxl()
    pipe.register_modules(unet=pico.unet(out_channels=8))
    pipe.save_pretrained(tmp_path / "base")
    refused(tmp_path / "base", ValueError, "predicts 8 channels")


OTHER_CLASSES = {
    "sdxl": ("StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
    "sd3": ("StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"),
    "flux": ("FluxKontextPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline"),
}


@pytest.mark.parametrize(("family", "kind"), [(f, k) for f, kinds in OTHER_CLASSES.items() for k in kinds])
def test_another_pipeline_class_of_the_same_parts_is_the_same_base(tmp_path, family, kind):
    """FLUX.1-Kontext above all; it draws the size that it is asked for, as the family's own class does."""
    import diffusers

    own = pico.BASES[family]()
    parts = {name: part for name, part in own.components.items() if name not in ("image_encoder", "feature_extractor")}
    getattr(diffusers, kind)(**parts).save_pretrained(tmp_path / "base")
    assert json.loads((tmp_path / "base" / "model_index.json").read_text())["_class_name"] == kind
    shutil.copy(pico.folder(family) / "qrlora.json", tmp_path / "base")
    ours, theirs = open_base(tmp_path / "base", "cpu"), open_base(pico.folder(family), "cpu")
    assert ours.family is theirs.family
    pictures = [generate(x, "a dog", check_triggers=False)[0] for x in (ours, theirs)]
    assert pictures[0].size == (pico.SIZE, pico.SIZE) and pictures[0].tobytes() == pictures[1].tobytes()
    assert blank_base(str(tmp_path / "base"))[0].family is theirs.family


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_flux_file_whose_norms_end_in_weight_is_the_same_base(one_file, prefix):  # noqa: F811
    path = one_file("flux")

    def renamed(held):
        for name in list(held):
            tensor = held.pop(name)
            held[prefix + name.replace("_norm.scale", "_norm.weight")] = tensor

    changed(path, renamed)
    assert any("key_norm.weight" in name for name in load_file(path))
    assert_same_base(open_base(path, "cpu"), open_base(pico.folder("flux"), "cpu"))


EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")


def stored_once(t5, kept, beginning=""):
    """The tensors of a T5, its embedding under one of its two names alone."""
    return {f"{beginning}{x}": tensor for x, tensor in t5.state_dict().items() if x not in EMBEDDINGS or x == kept}


@pytest.mark.parametrize(("family", "part"), [("sd3", "text_encoder_3"), ("flux", "text_encoder_2")])
def test_a_t5_whose_embedding_is_stored_once_opens(one_file, family, part):  # noqa: F811
    """Inside one file, as transformers saves it; and in a folder under either name."""
    path, base = one_file(family), open_base(pico.folder(family), "cpu")
    for kept in EMBEDDINGS:
        weights = path.with_suffix("") / part / "model.safetensors"
        save_file(stored_once(getattr(base.pipe, part), kept), weights, {"format": "pt"})
        changed(path, lambda held: [held.pop(name) for name in list(held) if "t5xxl" in name])
        assert_same_base(open_base(path, "cpu"), base)
    shared = stored_once(getattr(base.pipe, part), EMBEDDINGS[0], "text_encoders.t5xxl.transformer.")
    changed(path, lambda held: held.update(shared))
    weights.unlink()
    assert_same_base(open_base(path, "cpu"), base)


def test_a_text_encoder_with_a_weight_missing_is_refused_in_one_line(one_file):  # noqa: F811
    path = one_file("sd3")
    name = next(
        x for x in load_file(path) if x.startswith("text_encoders.t5xxl.") and x.endswith("SelfAttention.q.weight")
    )
    changed(path, lambda held: held.pop(name))
    refused(path, ValueError, "text_encoder_3.*lacks 1 .*SelfAttention.q.weight")


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux", "sd15"])
def test_a_clip_tokenizer_without_an_end_is_refused_in_one_line(tmp_path, family):
    """Its prompts would be padded to 10^30 tokens."""
    copy = tmp_path / "base"
    shutil.copytree(pico.folder(family), copy)
    config_of(copy, "tokenizer/tokenizer_config.json", model_max_length=int(1e30))
    refused(copy, ValueError, "tokenizer takes .* tokens.*text_encoder 77.*model_max_length")
    with pytest.raises(ValueError, match="model_max_length"):
        blank_base(str(copy))


@pytest.mark.parametrize("family", ["sd3", "flux", "z_image", "flux2"])
def test_a_tokenizer_without_an_end_takes_what_the_pipeline_takes(tmp_path, family):
    """Of encoders without learned positions: T5, Qwen3."""
    copy, name = tmp_path / "base", {"sd3": "tokenizer_3", "flux": "tokenizer_2"}.get(family, "tokenizer")
    shutil.copytree(pico.folder(family), copy)
    config_of(copy, f"{name}/tokenizer_config.json", model_max_length=int(1e30))
    assert_same_base(open_base(copy, "cpu"), open_base(pico.folder(family), "cpu"))
    assert blank_base(str(copy))[2] == blank_base(str(pico.folder(family)))[2]


@pytest.mark.parametrize(("family", "number"), [("sdxl", ""), ("sdxl", "_2"), ("sd3", "_3"), ("flux", "_2")])
def test_words_that_a_text_encoder_does_not_have_are_refused_in_one_line(tmp_path, family, number):
    """As textual inversion leaves them, saved without the encoder's new rows: an index error, on a GPU an abort."""
    copy = tmp_path / "base"
    shutil.copytree(pico.folder(family), copy)
    tokenizer = getattr(open_base(copy, "cpu").pipe, f"tokenizer{number}")
    encoder = getattr(open_base(copy, "cpu").pipe, f"text_encoder{number}")
    rows = encoder.get_input_embeddings().num_embeddings
    tokenizer.add_tokens([f"<new{k}>" for k in range(rows + 1 - len(tokenizer))])
    tokenizer.save_pretrained(copy / f"tokenizer{number}")
    refused(copy, ValueError, f"tokenizer{number} knows {rows + 1} .*text_encoder{number} {rows}")


WRONG = {
    "gone": lambda held, name: held.pop(name),
    "integers": lambda held, name: held.update({name: held[name].to(torch.int32)}),
    "with a scale beside": lambda held, name: held.update({f"{name}_scale": torch.ones(1)}),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_a_part_without_each_of_its_weights_as_they_are_stored_is_refused(tmp_path, part, wrong):
    """transformers would draw random numbers in place of what a file lacks, and go on."""
    copy = tmp_path / "base"
    shutil.copytree(pico.folder("sdxl"), copy)
    file = next((copy / part).glob("*.safetensors"))
    held = load_file(file)
    name = next(x for x in sorted(held) if x.endswith(("to_v.weight", "fc1.weight")))
    WRONG[wrong](held, name)
    save_file(held, file, {"format": "pt"})
    refused(copy, ValueError, f"its {part} (lacks|has) 1 .*{name.split('layers.')[-1].removesuffix('.weight')}")


def test_names_of_older_text_encoders_and_positions_in_integers_are_no_fault(tmp_path):
    copy = tmp_path / "base"
    shutil.copytree(pico.folder("sdxl"), copy)
    file = copy / "text_encoder" / "model.safetensors"
    held = {f"text_model.{name.removeprefix('text_model.')}": x for name, x in load_file(file).items()}
    held["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(held, file, {"format": "pt"})
    assert_same_base(open_base(copy, "cpu"), open_base(pico.folder("sdxl"), "cpu"))


READS = {
    "time_cond_proj_dim": {"time_cond_proj_dim": 8},
    "class_embed_type": {"class_embed_type": "timestep"},
    "num_class_embeds": {"num_class_embeds": 3},
    "encoder_hid_dim_type": {"encoder_hid_dim": 24, "encoder_hid_dim_type": "image_proj"},
    "addition_embed_type": {"addition_embed_type": None},
}


@pytest.mark.parametrize(("name", "config"), READS.items(), ids=READS.keys())
def test_a_unet_that_is_told_more_or_less_than_sdxls_is_refused_at_opening(tmp_path, name, config):
    """Latent consistency models read a guidance, IP-Adapters a picture; training would leave it out and say nothing."""
    pipe = pico.sdxl()
    pipe.register_modules(unet=pico.unet(**config))
    pipe.save_pretrained(tmp_path / "base")
    refused(tmp_path / "base", ValueError, f"its unet reads more .*{name}=")
    with pytest.raises(ValueError, match=name):
        blank_base(str(tmp_path / "base"))


@pytest.mark.parametrize(
    ("part", "config", "said"),
    [
        ("unet", {"cross_attention_dim": 32}, "24 numbers of a word, its unet reads 32"),
        ("unet", {"projection_class_embeddings_input_dim": 40}, "12 numbers of a prompt, its unet reads 16"),
    ],
)
def test_text_encoders_of_another_base_are_refused_at_opening(tmp_path, part, config, said):
    pipe = pico.sdxl()
    pipe.register_modules(unet=pico.unet(**config))
    pipe.save_pretrained(tmp_path / "base")
    refused(tmp_path / "base", ValueError, said)


@pytest.mark.parametrize("length", [0, -1, 77.5, 77.0, True, "77", [77]], ids=repr)
@pytest.mark.parametrize(("family", "name"), [("sdxl", "tokenizer_2"), ("sd3", "tokenizer_3"), ("flux", "tokenizer")])
def test_a_length_that_is_no_count_is_refused_at_opening(tmp_path, family, name, length):
    copy = tmp_path / "base"
    shutil.copytree(pico.folder(family), copy)
    config_of(copy, f"{name}/tokenizer_config.json", model_max_length=length)
    refused(copy, ValueError, f"its {name} must take a number of tokens")
    with pytest.raises(ValueError, match=f"its {name} must take a number of tokens"):
        blank_base(str(copy))


def test_tokenizers_of_unequal_lengths_are_refused_at_opening(tmp_path):
    copy = tmp_path / "base"
    shutil.copytree(pico.folder("sdxl"), copy)
    config_of(copy, "tokenizer/tokenizer_config.json", model_max_length=32)
    refused(copy, ValueError, "tokenizer 32 and its tokenizer_2 77")


INDEX = {  # what stands in the index -> what is said of it
    "a number": ("sdxl", {"unet": 5}, "has no unet"),
    "a library alone": ("sdxl", {"unet": ["diffusers"]}, "unet must name library and class"),
    "no tokenizer": ("sdxl", {"tokenizer": [None, None]}, "has no tokenizer,"),
    "no scheduler": ("flux", {"scheduler": [None, None]}, "has no scheduler"),
    "T5 without its tokenizer": ("sd3", {"tokenizer_3": [None, None]}, "text_encoder_3 without tokenizer_3"),
    "another class": ("sdxl", {"vae": ["diffusers", "AutoencoderTiny"]}, "its vae lacks"),
    "an unknown class": ("sdxl", {"text_encoder": ["transformers", "Foo"]}, "transformers.Foo, which is not known"),
}


@pytest.mark.parametrize(("family", "index", "said"), INDEX.values(), ids=INDEX.keys())
def test_an_index_that_names_a_part_wrongly_is_refused_in_one_line(tmp_path, family, index, said):
    copy = tmp_path / "base"
    shutil.copytree(pico.folder(family), copy)
    config_of(copy, "model_index.json", **index)
    refused(copy, ValueError, said)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["flux", "wan"])
def test_an_estimates_text_encoders_have_the_dtypes_of_opened_ones(family, dtype):
    """transformers keeps a part of T5 in float32 beside float16 alone; in bfloat16 that part was counted at 4 bytes."""
    opened = open_base(pico.folder(family), "cpu", dtype=dtype)
    _, spare, _ = blank_base(str(pico.folder(family)))
    for name in opened.family.text_encoders:
        counted = cast_model(spare[name], getattr(torch, dtype))
        assert {n: x.dtype for n, x in counted.named_parameters()} == {
            n: x.dtype for n, x in getattr(opened.pipe, name).named_parameters()
        }
