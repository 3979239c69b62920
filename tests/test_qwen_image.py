"""Qwen-Image: prompts of different lengths, a VAE of videos, guidance beside an empty negative prompt."""

import json
import shutil

import numpy as np
import pytest
import torch

import pico
from qrlora.families import SizeConditioning, open_base
from qrlora.sampling import generate
from qrlora.training import denoising_loss

PROMPTS = ["a dog in <s> style", "a cat"]
PLAIN = SizeConditioning.uncropped(pico.SIZE, pico.SIZE)


@pytest.fixture(scope="module")
def base():
    return open_base(pico.folder("qwen_image"), "cpu")


def test_the_loss_is_the_formula_of_the_public_training(base):
    """diffusers' train_dreambooth_lora_qwen_image.py, written anew: Qwen2.5-VL's last states behind the template of 34
    tokens, padding masked; s from the scheduler's table; 2 x 2 patches in rows, time / 1000; noise - x."""
    pipe, generator = base.pipe, torch.Generator().manual_seed(7)
    clean, noise, rows = pico.latents(base, 2, generator), pico.latents(base, 2, generator), torch.tensor([30, 720])
    with torch.no_grad():
        text = [pipe.prompt_template_encode.format(prompt) for prompt in PROMPTS]
        tokens = pipe.tokenizer(text, padding=True, return_tensors="pt")
        states = pipe.text_encoder(**tokens, output_hidden_states=True).hidden_states[-1]
        assert (
            tokens.input_ids[0, 33] == pipe.tokenizer("\n").input_ids[0]
        )  # the last of the template before the prompt
        sigma = pipe.scheduler.sigmas[rows].view(-1, 1, 1, 1)
        answer = pipe.transformer(
            hidden_states=pipe._pack_latents((1 - sigma) * clean + sigma * noise, 2, 4, 8, 8),
            encoder_hidden_states=states[:, 34:],
            encoder_hidden_states_mask=tokens.attention_mask[:, 34:],
            timestep=pipe.scheduler.timesteps[rows] / 1000,
            img_shapes=[[(1, 4, 4)]] * 2,
        ).sample
        answer = pipe._unpack_latents(answer, 16, 16, pipe.vae_scale_factor)[:, :, 0]
        expected = (answer - (noise - clean)).square().mean()
        condition = base.encode_prompt(PROMPTS, PLAIN)
        time = pipe.scheduler.timesteps[rows]
        loss = denoising_loss(base.family.predict, base.model, base.noising, clean, noise, time, condition)
    torch.testing.assert_close(loss, expected)


def test_a_prompt_is_answered_alone_as_beside_a_longer_one(base):
    both, noisy, time = base.encode_prompt(PROMPTS, PLAIN), pico.latents(base, 1), torch.tensor([500.0])
    assert both.lengths["text"][1] < both.lengths["text"][0] == both.tensors["text"].shape[1]
    with torch.no_grad():
        padded = base.family.predict(base.model, noisy.expand(2, -1, -1, -1), time.expand(2), both)[1:]
        alone = base.family.predict(base.model, noisy, time, base.encode_prompt(PROMPTS[1:], PLAIN))
    torch.testing.assert_close(padded, alone)


def test_latents_are_those_of_the_pipelines_own_encoding(base):
    """One frame, less the mean and divided by the deviation of each channel."""
    from diffusers import QwenImageImg2ImgPipeline

    pixels = torch.rand(1, 3, pico.SIZE, pico.SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    other = QwenImageImg2ImgPipeline(**base.pipe.components)
    expected = other._encode_vae_image(pixels.unsqueeze(2), torch.Generator().manual_seed(1))[:, :, 0]
    torch.testing.assert_close(base.encode_image(pixels, torch.Generator().manual_seed(1)), expected)


def test_guidance_acts_with_an_empty_negative_prompt_and_is_the_stock_pipelines(base):
    told = {"height": pico.SIZE, "width": pico.SIZE, "num_inference_steps": 2, "true_cfg_scale": 4.0}
    stock = base.pipe("a dog", negative_prompt="", generator=torch.Generator().manual_seed(3), **told).images[0]
    ours, weaker = (generate(base, "a dog", seed=3, steps=2, guidance=g)[0] for g in (4.0, 1.0))
    assert np.array_equal(ours, stock) and not np.array_equal(ours, weaker)


def test_one_step_is_refused_where_the_noise_levels_end_above_zero(base):
    with pytest.raises(ValueError, match="takes 2 steps or more; got 1"):
        generate(base, "a dog", steps=1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"zero_cond_t": True},
            "reads more than a qwen_image base's does: zero_cond_t=True",
        ),  # Qwen-Image-Edit-2511
        ({"use_layer3d_rope": True}, "use_layer3d_rope=True"),  # Qwen-Image-Layered
    ],
)
def test_a_transformer_that_reads_an_image_too_is_refused(tmp_path, change, match):
    shutil.copytree(pico.folder("qwen_image"), tmp_path / "b")
    path = tmp_path / "b" / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **change}), "utf-8")
    with pytest.raises(ValueError, match=match):
        open_base(tmp_path / "b", "cpu")


@pytest.mark.parametrize("pipeline", ["QwenImageEditPipeline", "QwenImageEditPlusPipeline", "QwenImageLayeredPipeline"])
def test_a_pipeline_that_edits_images_is_refused_and_those_that_draw_are_named(tmp_path, pipeline):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}), "utf-8")
    with pytest.raises(ValueError, match=f"{pipeline}, which is not supported; supported: .*QwenImagePipeline"):
        open_base(tmp_path, "cpu")


def test_a_transformer_alone_needs_the_folder_of_a_pipeline_beside_it(tmp_path):
    import checkpoint

    checkpoint.write(checkpoint.qwen_image(pico.qwen_image()), tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match="put a whole diffusers pipeline of its kind beside it, as the folder .*/model$"
    ):
        open_base(tmp_path / "model.safetensors", "cpu")
