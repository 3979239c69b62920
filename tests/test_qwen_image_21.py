"""Qwen-Image-2.1: prompts whose padding would move the image, transparent pixels, states before the encoder's norm."""

import json
import shutil

import numpy as np
import pytest
import torch

import pico
from qrlora.families import SizeConditioning, open_base
from qrlora.families.base_without_weights import blank_base
from qrlora.sampling import generate
from qrlora.training import denoising_loss
from test_families import refused, write_single_file

PROMPTS, SIDE = ["a dog in <s> style", "a cat"], pico.side_of("qwen_image_21")
PLAIN = SizeConditioning.uncropped(SIDE, SIDE)


@pytest.fixture(scope="module")
def base():
    return open_base(pico.folder("qwen_image_21"), "cpu")


def test_the_loss_is_flow_matching_on_what_the_pipeline_gives_the_model(base):
    """There is no public script; written from the pipeline: raw template, the system's turn dropped, the last layer's
    output before the norm, unpatched latents in rows, slots of four behind the words, time / 1000; noise - x."""
    pipe, generator = base.pipe, torch.Generator().manual_seed(7)
    clean, noise = (pico.latents(base, 2, generator) for _ in range(2))
    rows, errors = torch.tensor([30, 720]), []
    system = f"<|im_start|>system\n{pipe.sys_prompt}<|im_end|>\n"
    dropped = len(pipe.processor.tokenizer(system).input_ids)
    states = []
    hook = pipe.text_encoder.model.language_model.layers[-1].register_forward_hook(
        lambda module, args, output: states.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        for k, prompt in enumerate(PROMPTS):
            words = f"{system}<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
            pipe.text_encoder(input_ids=pipe.processor.tokenizer(words, return_tensors="pt").input_ids)
            text, sigma = states[-1].reshape(1, -1, 16)[:, dropped:], pipe.scheduler.sigmas[rows[k]]
            noisy = (1 - sigma) * clean[k] + sigma * noise[k]
            answer = pipe.transformer(
                hidden_states=noisy.reshape(1, 4, 4).transpose(1, 2),
                encoder_hidden_states=text,
                timestep=pipe.scheduler.timesteps[rows[k : k + 1]] / 1000,
                img_shapes=[[(1, 2, 2)]],
                img_mask=torch.tensor([[False] * text.shape[1] + [True]]),
            ).sample[0, -4:]
            errors.append((answer.T.reshape(4, 2, 2) - (noise[k] - clean[k])).square().mean())
        hook.remove()
        condition, time = base.encode_prompt(PROMPTS, PLAIN), pipe.scheduler.timesteps[rows]
        loss = denoising_loss(base.family.predict, base.model, base.noising, clean, noise, time, condition)
    torch.testing.assert_close(loss, torch.stack(errors).mean())


def test_a_prompt_is_answered_alone_as_beside_a_longer_one(base):
    both, noisy, time = base.encode_prompt(PROMPTS, PLAIN), pico.latents(base, 1), torch.tensor([500.0])
    assert both.lengths["text"][1] < both.lengths["text"][0]
    with torch.no_grad():
        padded = base.family.predict(base.model, noisy.expand(2, -1, -1, -1), time.expand(2), both)[1:]
        alone = base.family.predict(base.model, noisy, time, base.encode_prompt(PROMPTS[1:], PLAIN))
    torch.testing.assert_close(padded, alone)


def test_images_of_unequal_prompts_are_those_of_the_stock_pipeline_for_each_alone(base):
    """With guidance beside an empty negative prompt; without the alpha that the pipeline draws."""
    ours = generate(base, PROMPTS, seed=[3, 4], steps=2, guidance=4.0)
    told = {"negative_prompt": "", "true_cfg_scale": 4.0, "height": SIDE, "width": SIDE, "num_inference_steps": 2}
    for prompt, seed, image in zip(PROMPTS, (3, 4), ours, strict=True):
        stock = base.pipe(prompt, generator=torch.Generator().manual_seed(seed), **told).images[0]
        assert stock.mode == "RGBA" and image.mode == "RGB"
        assert np.array_equal(np.asarray(stock)[..., :3], np.asarray(image))
    assert not np.array_equal(*(np.asarray(generate(base, "a cat", steps=2, guidance=g)[0]) for g in (1.0, 4.0)))


def test_latents_are_those_of_the_pipelines_own_encoding_of_an_opaque_image(base):
    pixels = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    opaque = torch.cat([pixels, torch.ones(1, 1, SIDE, SIDE)], 1).unsqueeze(2)
    expected = base.pipe._encode_vae_image(opaque, None)[:, :, 0]
    torch.testing.assert_close(base.encode_image(pixels), expected)


def test_turbo_draws_with_the_noise_levels_of_its_index_and_is_not_to_be_trained_on(tmp_path):
    shutil.copytree(pico.folder("qwen_image_21"), tmp_path / "b", ignore=shutil.ignore_patterns("qrlora.json"))
    index = tmp_path / "b" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "sample_sigmas": [1.0, 0.6, 0.3]}))
    turbo = open_base(tmp_path / "b", "cpu")
    assert turbo.defaults.sample_steps == 3 == blank_base(str(tmp_path / "b"))[0].defaults.sample_steps
    assert [blank_base(x)[0].defaults.sample_steps for x in ("qwen-image-2.1", "qwen-image-2.1-turbo")] == [40, 8]
    assert turbo.family.distilled_from(turbo.pipe) == "Qwen/Qwen-Image-2.1"
    assert generate(turbo, "a cat", size=SIDE)[0].size == (SIDE, SIDE)
    with pytest.raises(ValueError, match="distilled to 3 steps, got 2: leave steps out"):
        generate(turbo, "a cat", size=SIDE, steps=2)


def test_one_step_is_refused_where_the_noise_levels_end_above_zero(base):
    with pytest.raises(ValueError, match="takes 2 steps or more; got 1"):
        generate(base, "a dog", steps=1)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_a_transformer_alone_is_read_with_the_folder_of_its_model(tmp_path, prefix):
    import checkpoint

    path = write_single_file("qwen_image_21", tmp_path)
    refused(path, ValueError, "is a qwen_image_21 transformer alone, .*put a whole diffusers")
    state = checkpoint.qwen_image_21(pico.qwen_image_21())
    checkpoint.write({prefix + name: x for name, x in state.items()}, path)
    shutil.copytree(pico.folder("qwen_image_21"), tmp_path / "model")
    ours, theirs = (open_base(x, "cpu").model.state_dict() for x in (path, pico.folder("qwen_image_21")))
    assert ours.keys() == theirs.keys() and all(torch.equal(x, theirs[name]) for name, x in ours.items())


def test_shapes_without_values_are_those_of_the_class(base):
    """Where memory is counted the class itself cannot run."""
    meta, latents = blank_base(str(pico.folder("qwen_image_21")))[0], pico.latents(base, 2)
    condition = base.encode_prompt(["a cat"] * 2, PLAIN)
    with torch.no_grad():
        real = base.family.predict(base.model, latents, torch.tensor([5.0, 900]), condition)
        counted = base.family.predict(
            meta.model, latents.to("meta"), torch.empty(2, device="meta"), condition.to("meta")
        )
    assert counted.is_meta and counted.shape == real.shape and counted.dtype == real.dtype
