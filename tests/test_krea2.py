"""Krea 2: Raw, on which one trains, and Turbo, with which one draws; several states for each word."""

import shutil

import pytest
import torch

import pico
from loras import random_adapter
from qrlora.estimate import estimate
from qrlora.families import SizeConditioning, open_base
from qrlora.families.base_without_weights import blank_base
from qrlora.layouts import LAYOUTS
from qrlora.sampling import generate, grid
from qrlora.training import denoising_loss
from test_families import refused, write_single_file

PROMPTS = ["a dog in style, in red", "a cat"]
PLAIN = SizeConditioning.uncropped(pico.SIZE, pico.SIZE)


@pytest.fixture(scope="module")
def base():
    return open_base(pico.folder("krea2"), "cpu")


def test_the_loss_is_the_formula_of_the_public_training(base):
    """diffusers' examples/dreambooth/train_dreambooth_lora_krea2.py, written anew: the pipeline's 512 tokens with their
    mask, where ours are without the padding; patches in a row, positions of three numbers, time / 1000."""
    pipe, generator = base.pipe, torch.Generator().manual_seed(7)
    clean, noise = pico.latents(base, 2, generator), pico.latents(base, 2, generator)
    rows = torch.tensor([30, 720])
    time, sigma = pipe.scheduler.timesteps[rows], pipe.scheduler.sigmas[rows].view(-1, 1, 1, 1)
    with torch.no_grad():
        text, mask = pipe.encode_prompt(PROMPTS)
        noisy = pipe._pack_latents((1 - sigma) * clean + sigma * noise, 2, 4, 8, 8)
        answer = pipe.transformer(
            hidden_states=noisy,
            encoder_hidden_states=text,
            timestep=time / 1000,
            position_ids=pipe.prepare_position_ids(512, 4, 4, "cpu"),
            encoder_attention_mask=mask,
        ).sample
        expected = (answer - pipe._pack_latents(noise - clean, 2, 4, 8, 8)).square().mean()
        condition = base.encode_prompt(PROMPTS, PLAIN)
        loss = denoising_loss(base.family.predict, base.model, base.noising, clean, noise, time, condition)
    assert condition.tensors["text"].shape[1] < 40
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


def test_an_image_is_that_of_the_stock_pipeline(base):
    """Whatever stands beside it in a batch; though the model is given the tokens of the longest text, and the
    pipeline's own 512 with their padding."""
    given = []
    hook = base.model.register_forward_pre_hook(
        lambda model, args, named: given.append(named["encoder_hidden_states"].shape[1]), with_kwargs=True
    )
    images = generate(base, PROMPTS, seed=[3, 4], negative_prompt="red", steps=2, size=pico.SIZE, guidance=2.0)
    hook.remove()
    assert {*given} == {base.encode_prompt(PROMPTS, PLAIN).tensors["text"].shape[1]} and max(given) < 40
    for prompt, seed, image in zip(PROMPTS, (3, 4), images, strict=True):
        stock = base.pipe(
            prompt, "red", pico.SIZE, pico.SIZE, 2, guidance_scale=2.0, generator=torch.Generator().manual_seed(seed)
        ).images[0]
        assert max(abs(a - b) for a, b in zip(stock.tobytes(), image.tobytes(), strict=True)) <= 1


def test_a_grid_with_the_default_layers_is_that_of_single_images(base):
    """The blocks that fuse a word's states see all words of a batch as rows, in which no strength could be told."""
    shapes = {"text_fusion.layerwise_blocks.0.attn.to_q": (16, 16), "transformer_blocks.0.attn.to_k": (8, 16)}
    content, style = (random_adapter(base.pipe, "krea2", shapes, seed=seed, method="qr") for seed in (1, 2))
    found = grid(base, "a cat", content, style, [0.0, 9.0], [1.0], steps=2, size=pico.SIZE)
    for (image,), strength in zip(found, (0.0, 9.0), strict=True):
        (alone,) = generate(base, "a cat", [(content, strength), style], steps=2, size=pico.SIZE)
        assert max(abs(a - b) for a, b in zip(alone.tobytes(), image.tobytes(), strict=True)) <= 1


def test_an_update_with_a_short_prompt_is_counted_as_less_where_prompts_are_not_padded():
    """Of FLUX.2, whose model reads the padding, as the same."""

    def counted(family, tokens):
        report = estimate(str(pico.folder(family)), how="count", against="", device="cpu", prompt_tokens=tokens)
        return report.step["qr"]["kept"]

    for family, shorter_is_less in (("krea2", True), ("flux2", False)):
        longest = counted(family, None)
        assert (counted(family, 20) < longest) == shorter_is_less and counted(family, 999) == longest
    with pytest.raises(ValueError, match="1 token or more, got prompt_tokens=0"):
        counted("krea2", 0)


def test_turbo_draws_in_8_steps_without_guidance(tmp_path):
    shutil.copytree(pico.folder("krea2", distilled=True), tmp_path / "b", ignore=shutil.ignore_patterns("qrlora.json"))
    turbo = open_base(tmp_path / "b", "cpu")
    assert (turbo.defaults.sample_steps, turbo.defaults.guidance) == (8, 0.0)
    blank = [blank_base(name)[0].defaults for name in ("krea2-raw", "krea2-turbo", str(tmp_path / "b"))]
    assert [(x.sample_steps, x.guidance) for x in blank] == [(52, 3.5), (8, 0.0), (8, 0.0)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_transformer_alone_is_read_with_the_folder_of_its_model(tmp_path, dtype):
    """Its norms are in float32 whatever the base's dtype is, as in the folder."""
    path = write_single_file("krea2", tmp_path)
    refused(path, ValueError, "is a krea2 transformer alone, which could be of several models: put a whole diffusers")
    shutil.copytree(pico.folder("krea2"), tmp_path / "model")
    ours, theirs = (open_base(x, "cpu", dtype).model.state_dict() for x in (path, pico.folder("krea2")))
    assert {x.dtype for x in ours.values()} == {torch.float32, getattr(torch, dtype)}
    assert all(x.dtype == theirs[name].dtype and torch.equal(x, theirs[name]) for name, x in ours.items())


def test_layers_of_the_presets_are_as_many_as_the_model_has():
    base = blank_base("krea2-raw")[0]
    assert round(sum(x.numel() for x in base.model.parameters()) / 1e9, 1) == 12.8
    counts = {name: len(base.target_layers(name)) for name in LAYOUTS["krea2"].targets}
    assert counts == {
        "public-script": 32 * 7 + 7,
        "attention": 32 * 5,
        "text-stream": 4 * 8 + 2,
        "time-embedding": 3,
    }
