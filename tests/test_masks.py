"""What is background has no part in the loss; what is opaque is trained on as ever."""

import dataclasses
import logging
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import pico
from commands import run
from qrlora.config import TrainConfig
from qrlora.files import load
from qrlora.image_loading import load_image
from qrlora.training import denoising_loss, train
from qrlora.training_example import encode_training_examples, loss_weights_of
from test_training import opened


def drawn(path, size=(32, 32), alpha=None):
    """Noise in RGB, or in RGBA with this alpha channel."""
    noise = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(noise.numpy().astype(np.uint8))
    if alpha is not None:
        image.putalpha(alpha)
    image.save(path)
    return path


def half(size=(32, 32), left=255, right=0):
    """Mode L: the left half of one value, the right half of another."""
    image = Image.new("L", size, right)
    image.paste(left, (0, 0, size[0] // 2, size[1]))
    return image


def settings(folder, **changes):
    own = {"base": str(pico.folder()), "output": folder / "out.safetensors", "device": "cpu", "overwrite": True}
    return TrainConfig(**{**own, "steps": 3, **changes})


@pytest.mark.parametrize("family", pico.BASES)
def test_the_loss_of_a_masked_image_is_the_plain_loss_of_the_places_that_count(tmp_path, family):
    """With a mask of whole places, each 1 or 0; and at whatever values the rest is, the loss does not change."""
    base = opened(family)
    image = load_image(drawn(tmp_path / "x.png", alpha=half()), pico.side_of(family))
    examples = encode_training_examples(base, [image], ["a <c>"])
    clean, weights = examples.latents.expand(2, -1, -1, -1), examples.loss_weights
    width = clean.shape[-1]
    assert weights.shape == (1, 1, *clean.shape[2:]) and float(weights.mean()) == pytest.approx(1)
    assert (weights[..., : width // 2] == 2).all() and (weights[..., width // 2 :] == 0).all()
    noise, time = torch.randn(clean.shape), torch.tensor([100, 700])
    condition = examples.condition.rows([0, 0])
    with torch.no_grad():
        loss = denoising_loss(base.family.predict, base.model, base.noising, clean, noise, time, condition, weights)
        noisy = base.noising.add_noise(clean, noise, time)
        error = (base.family.predict(base.model, noisy, time, condition) - base.noising.target(clean, noise, time)) ** 2
    torch.testing.assert_close(loss, error[..., : width // 2].mean())


def test_weights_are_the_mean_of_the_mask_over_each_place_divided_by_its_mean():
    """Written out for 4 x 4 pixels on 2 x 2 places; latents of a video take the same weights at every time."""
    mask = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0.5], [0, 0, 0, 0], [0, 0, 0, 0]])[None, None]
    weights = loss_weights_of(mask, torch.zeros(1, 16, 2, 2))
    torch.testing.assert_close(weights[0, 0], torch.tensor([[1.0, 0.125], [0, 0]]) / (1.125 / 4))
    assert loss_weights_of(mask, torch.zeros(1, 16, 3, 2, 2)).shape == (1, 1, 1, 2, 2)
    assert torch.equal(loss_weights_of(None, torch.zeros(1, 4, 2, 2)), torch.ones(1, 1, 2, 2))


def test_a_transparent_background_a_mask_and_masks_by_name_are_the_same_run(tmp_path):
    """The run's digest is equal, and so is every bit of the adapter; a mask as transparency is one, too."""
    alpha = half(left=255, right=0)
    transparent = drawn(tmp_path / "x.png", alpha=alpha)
    Image.open(transparent).convert("RGB").save(tmp_path / "unused.png")
    white = Image.new("RGB", (32, 32), "white")
    white.paste(Image.open(transparent), mask=alpha)
    white.save(tmp_path / "white.png")
    alpha.save(tmp_path / "grey.png")
    (tmp_path / "masks").mkdir()
    Image.merge("LA", (Image.new("L", (32, 32), 255), alpha)).save(tmp_path / "masks" / "white.webp", lossless=True)
    ways = [{"image": transparent}]
    ways += [{"image": tmp_path / "white.png", "mask": tmp_path / mask} for mask in ("grey.png", "masks")]
    adapters = [train(settings(tmp_path, **way), base=opened("sdxl")) for way in ways]
    assert len({adapter.header.config["run"] for adapter in adapters}) == 1
    for adapter in adapters[1:]:
        for name, pair in adapter.layers.items():
            assert torch.equal(pair.B, adapters[0].layers[name].B)
    assert [adapter.header.config.get("mask") for adapter in adapters] == [None, "grey.png", "white.webp"]
    plain = train(settings(tmp_path, image=tmp_path / "white.png"), base=opened("sdxl"))
    assert plain.header.config["run"] != adapters[0].header.config["run"]


def test_an_opaque_alpha_channel_changes_no_byte(tmp_path):
    drawn(tmp_path / "x.png")
    (tmp_path / "alpha").mkdir()
    drawn(tmp_path / "alpha" / "x.png", alpha=Image.new("L", (32, 32), 255))
    contents = []
    for path in (tmp_path / "x.png", tmp_path / "alpha" / "x.png"):
        train(settings(tmp_path, image=path), base=opened("sdxl"))
        contents.append((tmp_path / "out.safetensors").read_bytes())
    assert contents[0] == contents[1] and "mask" not in load(tmp_path / "out.safetensors").header.config


def test_a_mask_is_cropped_with_its_image(tmp_path):
    drawn(tmp_path / "x.png", (48, 32))
    half((48, 32)).save(tmp_path / "m.png")
    middle = load_image(tmp_path / "x.png", 16, mask=tmp_path / "m.png")
    assert np.array_equal(np.asarray(middle.mask), np.asarray(half((16, 16))))
    assert load_image(tmp_path / "x.png", 16, (0, 0, 24), tmp_path / "m.png").mask is None  # all of it counts
    right = np.asarray(load_image(tmp_path / "x.png", 16, (20, 0, 16), tmp_path / "m.png").mask)
    assert (right[:, :4] == 255).all() and (right[:, 4:] == 0).all()


def test_of_several_images_each_has_its_own_mask_and_is_known_by_it(tmp_path, caplog):
    """One transparent image, one opaque; the transparent one is named in one line; another mask is another run."""
    caplog.set_level(logging.INFO, logger="qrlora")
    folder = tmp_path / "images"
    folder.mkdir()
    drawn(folder / "a.png")
    drawn(folder / "b.png", alpha=half())
    config = settings(tmp_path, image=folder, steps=2)
    first = train(config, base=opened("flux"))
    assert caplog.messages == ["b.png: transparent parts are background and kept out of the loss"]
    drawn(folder / "b.png", alpha=half(left=0, right=255))
    with pytest.raises(FileExistsError):
        train(dataclasses.replace(config, overwrite=False), base=opened("flux"))
    (tmp_path / "masks").mkdir()
    Image.new("L", (32, 32), 255).save(tmp_path / "masks" / "a.png")
    half().save(tmp_path / "masks" / "b.png")
    drawn(folder / "b.png", alpha=half())
    again = train(dataclasses.replace(config, mask=tmp_path / "masks"), base=opened("flux"))
    assert again.header.config["run"] == first.header.config["run"]


BAD = {  # settings, what the one line must say
    "of another size": (
        ["mask=DIR/small.png"],
        "the mask DIR/small.png has 16 x 16 pixels, its image",
    ),
    "no image": (["mask=DIR/text.png"], "DIR/text.png is not a picture that can be read"),
    "missing": (["mask=DIR/none.png"], "DIR/none.png: No such file"),
    "all black": (["mask=DIR/black.png"], "the mask DIR/black.png leaves nothing of the part that is used"),
    "two for one": (["mask=DIR/black.png", "mask=DIR/small.png"], "2 masks for 1 image: give one mask for each image"),
    "a folder without it": (
        ["mask=DIR/masks"],
        "DIR/masks has no mask named x: add one, all white if all of",
    ),
    "the images' own folder": (["mask=DIR"], "DIR holds the images themselves: masks need a folder of their own"),
    "an empty folder": (["mask=DIR/none"], "DIR/none holds no images"),
    "all transparent": (["image=DIR/clear.png"], "the transparency of DIR/clear.png leaves nothing of the part"),
}


@pytest.mark.parametrize(("words", "message"), BAD.values(), ids=BAD.keys())
def test_a_mask_that_does_not_fit_is_one_line_before_a_base_is_opened(tmp_path, capsys, words, message):
    drawn(tmp_path / "x.png")
    drawn(tmp_path / "clear.png", alpha=Image.new("L", (32, 32), 0))
    half((16, 16)).save(tmp_path / "small.png")
    Image.new("L", (32, 32), 0).save(tmp_path / "black.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "masks").mkdir()
    shutil.copy(tmp_path / "black.png", tmp_path / "masks" / "y.png")
    if "an empty folder" in message or "none holds" in message:
        (tmp_path / "none").mkdir()
    words = [f"image={tmp_path}/x.png", *(word.replace("DIR", str(tmp_path)) for word in words)]
    words = words[1:] if words[1].startswith("image=") else words
    code, out, err = run(capsys, "train", *words, "base=there/is/none", f"output={tmp_path}/out.safetensors")
    line = err.strip().splitlines()[-1]
    assert code == 2 and out == "" and "Traceback" not in err
    assert line.startswith("error: ") and message.replace("DIR", str(tmp_path)) in line
