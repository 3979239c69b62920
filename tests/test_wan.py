"""Wan: an image as a video of one frame, a sampler of flows by another name, a time for each patch in 2.2-TI2V."""

import json
import shutil

import numpy as np
import pytest
import torch

import checkpoint
import pico
from qrlora.families import SizeConditioning, open_base
from qrlora.noising import flow_sigmas, noising_of
from qrlora.sampling import generate
from qrlora.training import denoising_loss

PROMPTS = ["a dog in <s> style", "a cat"]


@pytest.fixture(scope="module")
def base():
    return open_base(pico.folder("wan"), "cpu")


@pytest.mark.parametrize("expand_timesteps", [False, True])
def test_the_loss_is_the_formula_of_the_public_training(expand_timesteps):
    """musubi-tuner's wan_train_network.py, written anew: UMT5's states, zeros behind the prompt; x_t = (1 - t) x + t n
    on one frame, the time in 0..1000 as it is, the target n - x. 2.2-TI2V gets the time of each patch."""
    base = open_base(pico.folder("wan", expand_timesteps=expand_timesteps), "cpu")
    pipe, generator, time = base.pipe, torch.Generator().manual_seed(7), torch.tensor([31.0, 720.0])
    clean, noise = pico.latents(base, 2, generator), pico.latents(base, 2, generator)
    with torch.no_grad():
        tokens = pipe.tokenizer(PROMPTS, padding="max_length", max_length=512, return_tensors="pt")
        text = pipe.text_encoder(tokens.input_ids, tokens.attention_mask)[0] * tokens.attention_mask[..., None]
        t = (time / 1000).view(-1, 1, 1, 1, 1)
        frames = (1 - t) * clean.unsqueeze(2) + t * noise.unsqueeze(2)
        patches = time[:, None].expand(2, 16) if expand_timesteps else time
        answer = pipe.transformer(frames, patches, text).sample
        expected = (answer[:, :, 0] - (noise - clean)).square().mean()
        condition = base.encode_prompt(PROMPTS, SizeConditioning.uncropped(pico.SIZE, pico.SIZE))
        loss = denoising_loss(base.family.predict, base.model, base.noising, clean, noise, time, condition)
    torch.testing.assert_close(loss, expected)


def test_the_times_of_training_are_the_samplers_own(base):
    """diffusers' UniPC in as many steps has each shifted sigma to within one step, of up to shift / 1000."""
    scheduler = base.pipe.scheduler
    scheduler.set_timesteps(1000)
    sigmas = flow_sigmas(scheduler.config)
    assert base.noising.name == "flow" and len(sigmas) == 1000
    torch.testing.assert_close(sigmas.flip(0), scheduler.sigmas[:-1].float(), atol=3e-3, rtol=0)


def test_a_sampler_that_says_flow_without_its_sigmas_is_refused(base):
    with pytest.raises(ValueError, match="scheduler has prediction_type='flow_prediction'"):
        noising_of({**base.pipe.scheduler.config, "use_flow_sigmas": False})


@pytest.mark.parametrize("expand_timesteps", [False, True])
def test_an_image_is_the_only_frame_of_the_stock_pipelines_video(expand_timesteps):
    base = open_base(pico.folder("wan", expand_timesteps=expand_timesteps), "cpu")
    told = {"height": pico.SIZE, "width": pico.SIZE, "num_frames": 1, "num_inference_steps": 3, "guidance_scale": 2.0}
    video = base.pipe("a dog", generator=torch.Generator().manual_seed(3), output_type="pil", **told).frames[0]
    assert len(video) == 1 and np.array_equal(generate(base, "a dog", seed=3, guidance=2.0)[0], video[0])


def test_a_pipeline_of_two_transformers_is_refused_and_those_that_are_served_are_named(tmp_path):
    """Wan 2.2-A14B."""
    shutil.copytree(pico.folder("wan"), tmp_path / "b")
    index = tmp_path / "b" / "model_index.json"
    values = json.loads(index.read_text("utf-8"))
    values |= {"boundary_ratio": 0.875, "transformer_2": ["diffusers", "WanTransformer3DModel"]}
    index.write_text(json.dumps(values), "utf-8")
    with pytest.raises(ValueError, match="boundary_ratio=0.875 in its model_index.json.*Wan2.2-TI2V-5B") as caught:
        open_base(tmp_path / "b", "cpu")
    assert "\n" not in str(caught.value)


def test_a_pipeline_that_begins_with_an_image_is_refused(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "WanImageToVideoPipeline"}), "utf-8")
    with pytest.raises(ValueError, match="WanImageToVideoPipeline, which is not supported; supported: .*WanPipeline"):
        open_base(tmp_path, "cpu")


def test_one_file_keeps_the_weights_in_float32_that_diffusers_keeps_so(tmp_path):
    checkpoint.write(checkpoint.wan(pico.wan()), tmp_path / "model.safetensors")
    shutil.copytree(pico.folder("wan"), tmp_path / "model")
    ours, theirs = (open_base(x, "cpu", "bfloat16") for x in (tmp_path / "model.safetensors", pico.folder("wan")))
    dtypes = [{name: x.dtype for name, x in base.model.state_dict().items()} for base in (ours, theirs)]
    assert dtypes[0] == dtypes[1] and {*dtypes[0].values()} == {torch.float32, torch.bfloat16}
