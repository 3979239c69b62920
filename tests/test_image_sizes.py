"""Images that are no squares, in training, sampling and estimates, of every family."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

import pico
from commands import run
from qrlora.config import SampleConfig, TrainConfig, read_recipe
from qrlora.estimate import estimate
from qrlora.families.base_without_weights import blank_example
from qrlora.families.family import TokenLimits
from qrlora.files import load
from qrlora.image_loading import load_image
from qrlora.image_size import height_and_width, parse_image_size
from qrlora.sampling import generate
from qrlora.training import train
from test_training import opened

WIDE = f"{2 * pico.SIZE}x{pico.SIZE}"


def test_a_size_is_a_side_or_width_by_height_and_has_one_form():
    assert [parse_image_size("size", x) for x in (512, "512", "512x512", " 512 X 512 ")] == [512] * 4
    assert parse_image_size("size", "768x512") == "768x512" and height_and_width("768x512") == (512, 768)
    assert height_and_width(64) == (64, 64) and height_and_width((3, 4)) == (3, 4)
    assert read_recipe(None, ["resolution=768x512"]).resolution == "768x512"
    assert read_recipe(None, ["resolution=768"]).resolution == 768 == TrainConfig(resolution="768x768").resolution
    assert SampleConfig(size="64x32").size == "64x32"
    for wrong in ("wide", "768x", "x512", "768x512x3", 1.5, -8, True):
        with pytest.raises(ValueError, match="resolution must be"):
            TrainConfig(resolution=wrong)


@pytest.mark.parametrize("family", pico.BASES)
def test_every_family_learns_and_draws_images_that_are_no_squares(tmp_path, family):
    """Trained on 2 : 1, drawn 1 : 2 and 2 : 1; a batch of two is to rounding two single ones."""
    noise = torch.randint(0, 256, (20, 50, 3), generator=torch.Generator().manual_seed(0)).numpy().astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.png")
    base, output = opened(family), tmp_path / "out.safetensors"
    side = pico.side_of(family)
    wide, tall = f"{2 * side}x{side}", f"{side}x{2 * side}"
    settings = {"image": tmp_path / "x.png", "output": output, "device": "cpu", "steps": 2, "resolution": wide}
    losses = []
    train(TrainConfig(**settings), base=base, on_step=lambda x: losses.append(x.loss))
    assert len(losses) == 2 and load(output).header.config["resolution"] == wide
    drawn = generate(base, "a <c>", [output], size=wide, steps=2, count=2, check_triggers=False)
    assert [x.size for x in drawn] == [(2 * side, side)] * 2
    assert generate(base, "a <c>", [output], size=tall, steps=2)[0].size == (side, 2 * side)
    latents, _ = blank_example(base, wide, TokenLimits(), 3, "cpu")
    encoded = base.encode_image(load_image(tmp_path / "x.png", (side, 2 * side)).pixels)
    assert latents.shape[1:] == encoded.shape[1:]


def test_the_middle_of_an_image_is_cut_to_the_shape_and_a_crop_names_its_width(tmp_path):
    x, y = np.meshgrid(np.arange(60), np.arange(40))
    Image.fromarray(np.stack([x * 4, y * 4, 0 * x], -1).astype(np.uint8)).save(tmp_path / "x.png")
    wide = load_image(tmp_path / "x.png", (160, 320))
    assert wide.image.size == (320, 160) and wide.used == pytest.approx((0, 5, 60, 30), abs=0.5)
    chosen = load_image(tmp_path / "x.png", (16, 32), (10, 4, 40))
    assert chosen.used == (10, 4, 40, 20) and chosen.original == (40, 60) and chosen.corner == (3, 8)
    expected = Image.open(tmp_path / "x.png").crop((10, 4, 50, 24)).resize((32, 16), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(chosen.image), np.asarray(expected))
    with pytest.raises(ValueError, match=r"crop=0,20,60 reaches beyond the image.*y \+ side \* 0.5 at most 40"):
        load_image(tmp_path / "x.png", (16, 32), (0, 20, 60))


def test_an_estimate_of_twice_the_width_is_that_of_the_same_area():
    """The example's latents hold as many numbers, and an update takes as much memory."""
    found = [estimate(str(pico.folder()), how="count", against="", resolution=size) for size in ("64x32", "32x64", 32)]
    bytes_of = [x.step["qr"]["kept"] for x in found]
    assert bytes_of[0] == pytest.approx(bytes_of[1], rel=0.01) and bytes_of[0] > 1.8 * bytes_of[2]
    assert found[0].resolution == "64x32"


def test_a_size_that_a_base_cannot_have_is_one_line_with_the_nearest(studio, tmp_path, capsys):
    words = ["train", f"image={studio / 'dog.png'}", f"base={pico.folder()}", f"output={tmp_path}/x.safetensors"]
    code, _, err = run(capsys, *words, "resolution=33x16")
    assert code == 2 and "resolution must be a multiple of 8 pixels" in err and "got 33x16: try 32x16" in err
    words = ["generate", "a <c>", studio / "dog.safetensors", "--base", pico.folder(), "-o", tmp_path / "p.png"]
    code, _, err = run(capsys, *words, "--size", "16xx8")
    assert code == 2 and "size must be a side in pixels, 512, or WIDTHxHEIGHT" in err
    code, _, err = run(capsys, *words, "--size", "32x16", "--steps", "1")
    assert code == 0 and Image.open(tmp_path / "p.png").size == (32, 16)


def test_a_preview_has_the_shape_that_is_trained(studio, tmp_path):
    seen = []
    config = TrainConfig(image=studio / "dog.png", output=tmp_path / "o.safetensors", steps=1, resolution=WIDE)
    config = dataclasses.replace(config, preview_every=1, device="cpu")
    train(config, base=opened("sdxl"), on_preview=lambda step, image: seen.append(image.size))
    assert seen == [(2 * pico.SIZE, pico.SIZE)]
