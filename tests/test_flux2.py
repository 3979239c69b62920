"""FLUX.2: klein and its base, which differ in one word of the index, and dev, which reads a guidance."""

import json
import shutil

import pytest
import torch

import pico
from loras import random_adapter
from qrlora.families import SizeConditioning, flux2, open_base
from qrlora.families.adapter_compatibility import check_adapter_fits_base
from qrlora.families.base_without_weights import blank_base
from qrlora.families.trigger_tokens import describe_unreadable_trigger
from qrlora.files import load
from qrlora.layouts import LAYOUTS
from qrlora.safetensors_files import write_safetensors
from qrlora.training import denoising_loss
from test_families import refused, write_single_file

PROMPTS = ["a dog in <s> style, in red", "a cat"]


@pytest.fixture(scope="module")
def base():
    return open_base(pico.folder("flux2"), "cpu")


@pytest.mark.parametrize("guidance_embeds", [False, True])
def test_the_loss_is_the_formula_of_the_public_training(guidance_embeds):
    """diffusers' examples/dreambooth/train_dreambooth_lora_flux2_klein.py, written anew: three of Qwen3's states side
    by side, 512 tokens with padding, patches of 2 x 2 in a row, positions of four numbers, time / 1000, 3.5 as guidance
    if the model reads one; the states are those of the pipeline, not the script's."""
    base = open_base(pico.folder("flux2", guidance_embeds=guidance_embeds), "cpu")
    pipe, generator = base.pipe, torch.Generator().manual_seed(7)
    clean, noise = pico.latents(base, 2, generator), pico.latents(base, 2, generator)
    rows = torch.tensor([30, 720])
    time, sigma = pipe.scheduler.timesteps[rows], pipe.scheduler.sigmas[rows].view(-1, 1, 1, 1)
    turns = [f"<|im_start|>user\n{x}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n" for x in PROMPTS]
    with torch.no_grad():
        tokens = pipe.tokenizer(turns, padding="max_length", max_length=512, return_tensors="pt")
        states = pipe.text_encoder(**tokens, output_hidden_states=True).hidden_states
        text = torch.cat([states[k] for k in (9, 18, 27)], -1)
        patches, target = (pipe._patchify_latents(x) for x in ((1 - sigma) * clean + sigma * noise, noise - clean))
        answer = pipe.transformer(
            hidden_states=pipe._pack_latents(patches),
            encoder_hidden_states=text,
            timestep=time / 1000,
            img_ids=pipe._prepare_latent_ids(patches),
            txt_ids=pipe._prepare_text_ids(text),
            guidance=torch.tensor([3.5, 3.5]) if guidance_embeds else None,
        ).sample
        expected = (answer - pipe._pack_latents(target)).square().mean()
        condition = base.encode_prompt(PROMPTS, SizeConditioning.uncropped(pico.SIZE, pico.SIZE))
        loss = denoising_loss(base.family.predict, base.model, base.noising, clean, noise, time, condition)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


def test_latents_are_those_that_the_pipeline_encodes_and_decodes(base):
    """Normalised by the VAE's batch norm over patches of 2 x 2."""
    pixels = torch.rand(2, 3, pico.SIZE, pico.SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        expected = base.pipe._encode_vae_image(pixels, generator=None)
    torch.testing.assert_close(base.pipe._patchify_latents(base.encode_image(pixels)), expected)
    drawn = base.sample(["a cat"], "", pico.SIZE, 2, 2.0, [torch.Generator().manual_seed(3)])[0]
    stock = base.pipe(
        prompt="a cat", height=pico.SIZE, width=pico.SIZE, num_inference_steps=2, guidance_scale=2.0,
        generator=torch.Generator().manual_seed(3),
    ).images[0]  # fmt: skip
    assert max(abs(a - b) for a, b in zip(drawn.tobytes(), stock.tobytes(), strict=True)) <= 1


def test_positions_are_those_of_the_pipeline(base):
    latents = torch.zeros(1, 4, 3, 5)
    assert torch.equal(flux2.positions(1, 3, 5, 1), base.pipe._prepare_latent_ids(latents)[0])
    assert torch.equal(flux2.positions(1, 1, 1, 7), base.pipe._prepare_text_ids(torch.zeros(1, 7, 2))[0])


def test_the_distilled_model_draws_in_4_steps_and_has_no_guidance(tmp_path):
    shutil.copytree(pico.folder("flux2", distilled=True), tmp_path / "b", ignore=shutil.ignore_patterns("qrlora.json"))
    klein = open_base(tmp_path / "b", "cpu")
    assert (klein.defaults.sample_steps, klein.defaults.guidance) == (4, 1.0)
    blank = [blank_base(name)[0].defaults for name in ("flux2-klein-4b", "flux2-klein-base-4b", "flux2-dev")]
    assert [(x.sample_steps, x.guidance) for x in blank] == [(4, 1.0), (50, 4.0), (50, 4.0)]
    drawn = klein.sample(["a cat"], "", pico.SIZE, 2, 1.0, [torch.Generator().manual_seed(3)])
    assert drawn[0].size == (pico.SIZE, pico.SIZE)
    with pytest.raises(ValueError, match="distilled to few steps and has no guidance: give 1, got 4"):
        klein.embed(["a cat"], "", 4.0)
    with pytest.raises(ValueError, match="reads no negative prompt"):
        klein.embed(["a cat"], "red", 1.0)


def test_dev_is_opened_as_what_its_index_names(tmp_path):
    shutil.copytree(pico.folder("flux2", guidance_embeds=True), tmp_path / "b")
    index = tmp_path / "b" / "model_index.json"
    named = {**json.loads(index.read_text()), "_class_name": "Flux2Pipeline"}
    named["tokenizer"] = ["transformers", "PixtralProcessor"]
    named.pop("is_distilled")
    index.write_text(json.dumps(named))
    base = blank_base(str(tmp_path / "b"))[0]
    assert base.family is flux2.FLUX2 and not flux2.is_step_distilled(base.pipe)


def test_bases_that_need_an_image_are_refused_by_name(tmp_path):
    shutil.copytree(pico.folder("flux2"), tmp_path / "b")
    index = tmp_path / "b" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "Flux2KleinKVPipeline"}))
    refused(
        tmp_path / "b", ValueError, "is a Flux2KleinKVPipeline, which is not supported; supported: .*FLUX.2-klein-4B"
    )


def test_a_lora_of_klein_4b_is_refused_on_9b():
    base = blank_base("flux2-klein-base-9b")[0]
    shapes = {"transformer_blocks.0.attn.to_q": (3072, 3072)}
    adapter = random_adapter(pico.flux2(), "flux2", shapes, rank=1, base="black-forest-labs/FLUX.2-klein-base-4B")
    with pytest.raises(ValueError, match=r"FLUX.2-klein-base-4B \(flux2\), not to .*: 4096 x 4096, not 3072 x 3072"):
        check_adapter_fits_base(base, adapter)


@pytest.mark.parametrize(("rows", "family"), [(7, "flux"), (9, "flux2")])
def test_the_fused_layer_of_single_blocks_tells_the_two_families_apart(tmp_path, rows, family):
    adapter = random_adapter(pico.flux2(), "", {"single_blocks.0.linear1": (rows * 16, 16)}, rank=1)
    (pair,) = adapter.layers.values()
    stem = "lora_unet_single_blocks_0_linear1.lora"
    write_safetensors(tmp_path / "x.safetensors", {f"{stem}_down.weight": pair.A, f"{stem}_up.weight": pair.B}, {})
    assert load(tmp_path / "x.safetensors").header.family == family


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_transformer_alone_is_read_with_the_folder_of_its_model(tmp_path, prefix):
    from safetensors.torch import load_file, save_file

    path = write_single_file("flux2", tmp_path)
    refused(path, ValueError, "is a flux2 transformer alone, which could be of several models: put a whole diffusers")
    save_file({prefix + name: x for name, x in load_file(path).items()}, path)
    shutil.copytree(pico.folder("flux2", distilled=True), tmp_path / "model")
    single = open_base(path, "cpu")
    assert flux2.is_step_distilled(single.pipe)
    for name, x in open_base(pico.folder("flux2"), "cpu").model.state_dict().items():
        assert torch.equal(x, single.model.state_dict()[name]), name


def test_layers_of_the_presets_are_as_many_as_the_model_has():
    base = blank_base("flux2-klein-4b")[0]
    counts = {name: len(base.target_layers(name)) for name in LAYOUTS["flux2"].targets}
    assert counts == {
        "attention": 5 * 4 + 20 * 2,
        "attention-ff": 5 * 12 + 20 * 2,
        "text-stream": 5 * 6 + 1,
        "image-stream": 5 * 6,
        "time-embedding": 3 + 2,
    }


@pytest.mark.parametrize(("name", "billions"), [("flux2-klein-4b", 4), ("flux2-klein-base-9b", 9), ("flux2-dev", 32)])
def test_public_models_have_as_many_parameters_as_their_names_say(name, billions):
    assert round(sum(x.numel() for x in blank_base(name)[0].model.parameters()) / 1e9) == billions


TEMPLATE = "{% for m in messages %}[{{ m.role }}]{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"


def dev(place):
    """The folder of a pico FLUX.2-dev: a Mistral with eyes, and, as its tokenizer, what a PixtralProcessor holds. The
    class itself cannot be made without torchvision."""
    from diffusers import Flux2Pipeline
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    klein, words = pico.flux2(guidance_embeds=True), pico.qwen_tokenizer()
    words.chat_template = TEMPLATE
    text = dict(vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=30, head_dim=8)
    text |= dict(model_type="mistral", num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=1024)
    eyes = dict(model_type="pixtral", hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=eyes)).eval()
    parts = dict(scheduler=klein.scheduler, vae=klein.vae, text_encoder=encoder, transformer=klein.transformer)
    Flux2Pipeline(**parts, tokenizer=words).save_pretrained(place)  # pyright: ignore[reportArgumentType]
    for file, told in {
        "model_index.json": {"tokenizer": ["transformers", "PixtralProcessor"]},
        "tokenizer/processor_config.json": {"processor_class": "PixtralProcessor", "image_token": "<think>"},
        "tokenizer/tokenizer_config.json": {"processor_class": "PixtralProcessor", "padding_side": "left"},
    }.items():
        values = json.loads((place / file).read_text("utf-8")) if (place / file).is_file() else {}
        (place / file).write_text(json.dumps({**values, **told}), "utf-8")


def test_dev_reads_words_without_torchvision_and_draws_what_the_stock_pipeline_draws(tmp_path):
    """Its prompts are padded on the left, behind a message of the system; three of Mistral's states are read."""
    from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE

    dev(tmp_path / "b")
    base = open_base(tmp_path / "b", "cpu")
    assert type(base.pipe).__name__ == "Flux2Pipeline" and base.defaults.guidance == 4.0
    condition = base.encode_prompt(PROMPTS, SizeConditioning.uncropped(pico.SIZE, pico.SIZE))
    assert condition.tensors["guidance"].tolist() == [3.5, 3.5]
    words = [f"[system]{SYSTEM_MESSAGE}[user]{prompt}" for prompt in PROMPTS]
    tokens = [pico.qwen_tokenizer()(x).input_ids[:512] for x in words]
    for row, ids in zip(condition.tensors["text"], tokens, strict=True):
        padded = torch.tensor([[base.pipe.tokenizer.pad_token_id] * (512 - len(ids)) + ids])
        mask = torch.tensor([[0] * (512 - len(ids)) + [1] * len(ids)])
        with torch.no_grad():
            states = base.pipe.text_encoder(padded, attention_mask=mask, output_hidden_states=True).hidden_states
        torch.testing.assert_close(row, torch.cat([states[k][0] for k in (10, 20, 30)], -1))
    drawn = base.sample(["a cat"], "", pico.SIZE, 2, 4.0, [torch.Generator().manual_seed(3)])[0]
    stock = base.pipe(
        prompt="a cat", height=pico.SIZE, width=pico.SIZE, num_inference_steps=2, guidance_scale=4.0,
        generator=torch.Generator().manual_seed(3),
    ).images[0]  # fmt: skip
    assert max(abs(a - b) for a, b in zip(drawn.tobytes(), stock.tobytes(), strict=True)) <= 1
    assert describe_unreadable_trigger(base, "<c>") == ""
    with pytest.raises(ValueError, match="reads no negative prompt"):
        base.embed(["a cat"], "red", 4.0)
