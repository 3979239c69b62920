"""Pictures to latents and back: any stock VAE, always in float32, one picture at a time."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLHunyuanImage, AutoencoderTiny
from PIL import Image
from safetensors.torch import load_file

import pico
from qrlora.config import TrainConfig
from qrlora.families import FAMILIES, open_base
from qrlora.sampling import generate
from qrlora.training import train
from test_families import write_single_file

HALF = ("bfloat16", "float16")
KINDS = {
    "kl": lambda: pico.vae(scaling_factor=0.3, shift_factor=0.2),
    "kl with mean and deviation": lambda: pico.vae(
        latents_mean=[0.1, 0.2, -0.1, 0.0], latents_std=[1.0, 0.5, 2.0, 0.3]
    ),
    "hunyuan": lambda: AutoencoderKLHunyuanImage(3, 3, 4, (32, 32), 1, 2, pico.SIZE, scaling_factor=0.7),
    "tiny": lambda: AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        scaling_factor=0.4,
        shift_factor=0.2,
    ),
}
"""Classes of VAE that bases come with; all of them halve the sides and have 4 latent channels, as pico's."""


def pixels(count=1):
    return torch.rand(count, 3, pico.SIZE, pico.SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1


def folder_with(vae, tmp_path, family="sdxl"):
    """A pico base with another VAE."""
    place = tmp_path / "base"
    shutil.copytree(pico.folder(family), place)
    shutil.rmtree(place / "vae")
    vae.save_pretrained(place / "vae")
    index = json.loads((place / "model_index.json").read_text())
    index["vae"] = ["diffusers", type(vae).__name__]
    (place / "model_index.json").write_text(json.dumps(index))
    return place


def values(pictures):
    return np.stack([np.asarray(picture).astype(int) for picture in pictures])


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_turns_encoding_round_for_every_class_of_vae(kind, tmp_path):
    """The picture is the VAE's own reconstruction, asked for without us."""
    torch.manual_seed(0)
    base = open_base(folder_with(KINDS[kind](), tmp_path), "cpu")
    with torch.no_grad():
        found = base.pipe.vae.encode(pixels(2))
        theirs = base.pipe.vae.decode(found.latents if kind == "tiny" else found.latent_dist.mode()).sample
    theirs = ((theirs / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy()
    ours = values(base.decode_image(base.encode_image(pixels(2))))
    assert np.abs(ours - theirs).max() < 0.51


@pytest.mark.parametrize("kind", KINDS)
def test_a_base_with_any_class_of_vae_learns_and_draws(kind, tmp_path):
    torch.manual_seed(0)
    base = open_base(folder_with(KINDS[kind](), tmp_path), "cpu", "bfloat16")
    Image.effect_noise((20, 20), 60).convert("RGB").save(tmp_path / "x.png")
    settings = {"image": tmp_path / "x.png", "output": tmp_path / "o.safetensors", "preview_every": 1, "steps": 1}
    shown = []
    train(TrainConfig(**settings), base=base, on_preview=lambda step, picture: shown.append(picture))
    assert values(shown).std() > 0 and values(generate(base, "a dog", count=2, steps=1)).std() > 0


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_vae_is_the_checkpoints_to_the_last_bit_whatever_the_base_is_in(family, dtype):
    """So are latents and pictures: those of the base in float32."""
    half, full = open_base(pico.folder(family), "cpu", dtype), open_base(pico.folder(family), "cpu", "float32")
    stored = load_file(pico.folder(family) / "vae" / "diffusion_pytorch_model.safetensors")
    for name, value in half.pipe.vae.state_dict().items():
        assert (value.dtype == torch.float32 or not value.is_floating_point()) and torch.equal(value, stored[name]), (
            name
        )
    assert str(half.model.dtype) == f"torch.{dtype}"
    latents = half.encode_image(pixels())
    assert torch.equal(latents, full.encode_image(pixels()))
    assert np.array_equal(values(half.decode_image(latents)), values(full.decode_image(latents)))


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_the_vae_within_a_single_file_is_its_own_in_float32(family, tmp_path):
    shutil.copytree(pico.folder(family), tmp_path / "model", ignore=shutil.ignore_patterns("vae/*.safetensors"))
    half = open_base(write_single_file(family, tmp_path), "cpu", "bfloat16")
    full = open_base(pico.folder(family), "cpu")
    assert torch.equal(half.encode_image(pixels()), full.encode_image(pixels()))


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_are_decoded_one_at_a_time(family):
    """Twelve of 1024 pixels at once took 19 GB where denoising took 4."""
    base, rows = open_base(pico.folder(family), "cpu"), []
    base.pipe.vae.decoder.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    generate(base, "a dog", count=3, steps=2)
    assert rows == [1, 1, 1]


@pytest.mark.parametrize("dtype", ["float32", *HALF])
def test_a_failed_decode_leaves_the_base_as_it_was(dtype):
    """The next try gives the pictures that it would have given."""
    base = open_base(pico.folder(), "cpu", dtype)
    before = base.encode_image(pixels())
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = values(base.decode_image(latents))

    def out_of_memory(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    for part in (base.pipe.vae.decoder, base.pipe.vae.encoder):
        hook = part.register_forward_hook(out_of_memory)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            base.decode_image(latents)
            base.encode_image(pixels())
        hook.remove()
    assert np.array_equal(values(base.decode_image(latents)), expected)
    assert torch.equal(base.encode_image(pixels()), before)
