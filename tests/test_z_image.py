"""Z-Image and Z-Image-Turbo: prompts of their own lengths, a time that runs backwards, guidance that acts above 0."""

import json
import shutil

import pytest
import torch

import pico
from loras import random_adapter
from qrlora.compat import CheckedFile, check, key_verdicts
from qrlora.families import Condition, SizeConditioning, open_base
from qrlora.families.base_without_weights import blank_base
from qrlora.files import load, save
from qrlora.layouts import LAYOUTS
from qrlora.safetensors_files import read_safetensors, write_safetensors
from qrlora.sampling import generate, grid
from qrlora.training import denoising_loss, train
from test_families import refused, write_single_file
from test_training import settings

PROMPTS = ["a dog in <s> style, in red", "a cat"]


@pytest.fixture(scope="module")
def base():
    return open_base(pico.folder("z_image"), "cpu")


def test_the_loss_is_the_formula_of_the_public_training(base):
    """diffusers' examples/dreambooth/train_dreambooth_lora_z_image.py, written anew, image by image: Qwen3's states
    before the last, without padding, the time from noise to image in 0..1, a prediction of image - noise."""
    pipe, generator, losses = base.pipe, torch.Generator().manual_seed(7), []
    clean, noise = pico.latents(base, 2, generator), pico.latents(base, 2, generator)
    rows = torch.tensor([30, 720])
    time = pipe.scheduler.timesteps[rows]
    for k, prompt in enumerate(PROMPTS):
        turn = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        sigma = pipe.scheduler.sigmas[rows[k]]
        with torch.no_grad():
            states = pipe.text_encoder(pipe.tokenizer(turn, return_tensors="pt").input_ids, output_hidden_states=True)
            noisy = ((1 - sigma) * clean[k] + sigma * noise[k]).unsqueeze(1)
            (answer,) = pipe.transformer([noisy], 1 - sigma.view(1), [states.hidden_states[-2][0]]).sample
        losses.append(((-answer.squeeze(1)) - (noise[k] - clean[k])).square().mean())
    with torch.no_grad():
        condition = base.encode_prompt(PROMPTS, SizeConditioning.uncropped(pico.SIZE, pico.SIZE))
        loss = denoising_loss(base.family.predict, base.model, base.noising, clean, noise, time, condition)
    torch.testing.assert_close(loss, torch.stack(losses).mean(), rtol=1e-5, atol=1e-6)


def test_rows_of_texts_are_those_of_each_prompt_alone(base):
    framing = SizeConditioning.uncropped(pico.SIZE, pico.SIZE)
    both = base.encode_prompt(PROMPTS, framing)
    alone = [base.encode_prompt([prompt], framing) for prompt in PROMPTS]
    assert both.lengths["text"] == tuple(x.tensors["text"].shape[1] for x in alone) and not alone[0].lengths
    for together in (both, Condition.joined(alone)):
        for k, one in enumerate(alone):
            torch.testing.assert_close(together.rows([k]).tensors["text"], one.tensors["text"])
            assert not together.rows([k, k]).lengths and len(together.rows([k, k])) == 2
        assert [len(x) for x in together.to("cpu").texts("text")] == [*both.lengths["text"]]


def test_an_image_is_the_same_alone_and_beside_a_longer_prompt(base):
    together = generate(base, PROMPTS, seed=[3, 4], negative_prompt="red", steps=2, size=pico.SIZE)
    for prompt, seed, image in zip(PROMPTS, (3, 4), together, strict=True):
        (alone,) = generate(base, prompt, seed=seed, negative_prompt="red", steps=2, size=pico.SIZE)
        pairs = zip(alone.tobytes(), image.tobytes(), strict=True)
        assert max(abs(a - b) for a, b in pairs) <= 1


def test_turbo_draws_in_9_steps_without_guidance():
    defaults = {name: blank_base(name)[0].defaults for name in ("z-image", "z-image-turbo")}
    assert (defaults["z-image"].sample_steps, defaults["z-image"].guidance) == (50, 4.0)
    assert (defaults["z-image-turbo"].sample_steps, defaults["z-image-turbo"].guidance) == (8, 0.0)


def test_a_grid_with_an_adapter_of_the_embedders_is_that_of_single_images(base):
    """These layers read the tokens of a whole batch as one row, in which no strength of an image could be told."""
    model = base.model
    shapes = {name: tuple(model.get_submodule(name).weight.shape) for name in ("cap_embedder.1", "all_x_embedder.2-1")}
    content, style = (random_adapter(base.pipe, "z_image", shapes, seed=seed, method="qr") for seed in (1, 2))
    found = grid(base, "a cat", content, style, [0.0, 3.0], [1.0], steps=2, size=pico.SIZE)
    for (image,), strength in zip(found, (0.0, 3.0), strict=True):
        (alone,) = generate(base, "a cat", [(content, strength), style], steps=2, size=pico.SIZE)
        assert max(abs(a - b) for a, b in zip(alone.tobytes(), image.tobytes(), strict=True)) <= 1
    assert found[0][0].tobytes() != found[1][0].tobytes()


def test_a_kohya_file_is_converted_there_and_back(tmp_path):
    """musubi-tuner's names with its alphas, to the names that ComfyUI reads, and back."""
    adapter = random_adapter(pico.z_image(), "z_image", ["to_q", "to_k", "to_v", "to_out.0", "w1", "w2", "w3"])
    save(adapter, tmp_path / "k.safetensors", keys="kohya")
    tensors = read_safetensors(tmp_path / "k.safetensors")[0]
    assert "lora_unet_layers_0_attention_to_out_0.lora_down.weight" in tensors
    write_safetensors(tmp_path / "foreign.safetensors", tensors, {"ss_base_model_version": "z_image"})
    foreign = load(tmp_path / "foreign.safetensors")
    assert foreign.header.family == "z_image"
    save(foreign, tmp_path / "d.safetensors")
    for tool in ("comfyui", "diffusers"):
        assert {x.state for x in check(tmp_path / "d.safetensors", tool)} == {"loaded"}
    save(load(tmp_path / "d.safetensors"), tmp_path / "back.safetensors", keys="kohya")
    back = read_safetensors(tmp_path / "back.safetensors")[0]
    assert back.keys() == tensors.keys() and all(torch.equal(x, back[key]) for key, x in tensors.items())
    assert {x.state for x in check(tmp_path / "back.safetensors", "kohya")} == {"loaded"}


def test_comfyui_loads_of_kohyas_names_those_that_the_original_model_has_too():
    adapter = random_adapter(pico.z_image(), "z_image", ["to_q", "w1"])
    stems = {layer: f"lora_unet_{layer.replace('.', '_')}" for layer in adapter.layers}
    tensors = {f"{stem}.lora_down.weight": adapter.layers[x].A for x, stem in stems.items()}
    tensors |= {f"{stem}.lora_up.weight": adapter.layers[x].B for x, stem in stems.items()}
    for verdict in key_verdicts(CheckedFile(tensors, {"ss_base_model_version": "z_image"}), "comfyui"):
        assert bool(verdict.factor) == ("feed_forward" in verdict.key)


def test_a_lora_of_lumina_2_is_no_lora_of_z_image(tmp_path):
    """It has the same names, and other widths."""
    for width, family in ((2304, ""), (3840, "z_image")):
        layers = {"layers.0.attention.to_q": (width, width), "layers.0.feed_forward.w1": (8, width)}
        adapter = random_adapter(pico.z_image(), "", layers, rank=1)
        tensors = {
            f"transformer.{n}.lora_{x}.weight": getattr(pair, x) for n, pair in adapter.layers.items() for x in "AB"
        }
        write_safetensors(tmp_path / "x.safetensors", tensors, {})
        assert load(tmp_path / "x.safetensors").header.family == family


def test_a_base_that_reads_images_is_refused(tmp_path):
    """Z-Image-Omni, by its pipeline and by its transformer alone."""
    shutil.copytree(pico.folder("z_image"), tmp_path / "b")
    config = tmp_path / "b" / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "siglip_feat_dim": 8}))
    refused(tmp_path / "b", ValueError, "reads more than a z_image base's is told: siglip_feat_dim=8|siglip")
    index = tmp_path / "b" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "ZImageOmniPipeline"}))
    refused(tmp_path / "b", ValueError, "is a ZImageOmniPipeline, which is not supported; supported: .*ZImagePipeline")


def test_a_transformer_alone_asks_for_the_folder_of_its_model(tmp_path):
    """Z-Image and Turbo differ in nothing that the file says."""
    path = write_single_file("z_image", tmp_path)
    refused(path, ValueError, "is a z_image transformer alone, which could be of several models: put a whole diffusers")
    for shift in (6.0, 3.0):
        shutil.copytree(pico.folder("z_image", shift=shift), tmp_path / "model", dirs_exist_ok=True)
        (tmp_path / "model" / "qrlora.json").unlink()
        assert open_base(path, "cpu").defaults.guidance == {6.0: 4.0, 3.0: 0.0}[shift]


def test_layers_of_the_presets_are_as_many_as_the_model_has():
    base = blank_base("z-image")[0]
    counts = {name: len(base.target_layers(name)) for name in LAYOUTS["z_image"].targets}
    assert counts == {
        "attention": 34 * 4,
        "attention-ff": 34 * 7,
        "text-stream": 2 * 7 + 1,
        "image-stream": 2 * 7,
        "time-embedding": 32 + 2,
    }


@pytest.mark.parametrize(
    ("family", "distilled", "other"),
    [
        ("z_image", {"shift": 3.0}, "Tongyi-MAI/Z-Image"),
        ("flux2", {"distilled": True}, "black-forest-labs/FLUX.2-klein-base-4B"),
        ("krea2", {"distilled": True}, "krea/Krea-2-Raw"),
    ],
)
def test_who_trains_on_a_distilled_base_is_told_which_one_to_train_on(tmp_path, family, distilled, other):
    with pytest.warns(UserWarning, match=f"is distilled to few steps, .* train on {other}, whose layers are the same"):
        train(settings(tmp_path, steps=1), base=open_base(pico.folder(family, **distilled), "cpu"))


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("flux2-klein-4b", "black-forest-labs/FLUX.2-klein-base-4B"),
        ("flux2-klein-9b", "black-forest-labs/FLUX.2-klein-base-9B"),
        *((name, "") for name in ("flux2-dev", "flux2-klein-base-9b", "z-image", "krea2-raw")),
    ],
)
def test_the_base_to_train_on_has_the_same_size(name, other):
    base = blank_base(name)[0]
    assert base.family.distilled_from(base.pipe) == other
