"""Pictures as training reads them, and every picture that it refuses."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import pico
from qrlora.data import load_picture, prepare
from qrlora.families import open_base


def gradient(width=40, height=40):
    """Red grows to the right, green downwards: every turn and crop shows."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 0 * x + 128], -1).astype(np.uint8))


def saved(folder, image, name="x.png", **how):
    image.save(folder / name, **how)
    return folder / name


def test_a_picture_of_the_right_size_is_unchanged(tmp_path):
    picture = load_picture(saved(tmp_path, gradient(32, 32)), 32)
    assert np.array_equal(picture.image, gradient(32, 32))
    pixels = picture.pixels
    assert pixels.shape == (1, 3, 32, 32) and pixels.dtype == torch.float32
    assert pixels[0, 0, 0, 0] == -1 and pixels[0, 0, 0, -1] == 1 and pixels[0, 1, -1, 0] == 1


def test_the_middle_square_is_cut_out_and_where_is_told(tmp_path):
    """Shorter side to the size, middle cut: 80 x 40 at 20 becomes 40 x 20, of which columns 10..30 stay."""
    picture = load_picture(saved(tmp_path, gradient(80, 40)), 20)
    assert picture.image.size == (20, 20)
    assert picture.original == (40, 80) and picture.corner == (0, 10)
    red = np.asarray(picture.image)[:, :, 0]
    assert abs(int(red[0, 0]) - 64) < 8 and abs(int(red[0, -1]) - 191) < 8


def test_a_small_picture_is_enlarged(tmp_path):
    assert load_picture(saved(tmp_path, gradient(17, 23)), 64).image.size == (64, 64)


def test_a_picture_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees to see it
    path = saved(tmp_path, gradient(40, 20), "x.jpg", exif=exif, quality=95)
    picture = load_picture(path, 20)
    assert picture.original == (40, 20)
    upright = np.asarray(gradient(40, 20).transpose(Image.Transpose.ROTATE_270).crop((0, 10, 20, 30)))
    assert np.abs(np.asarray(picture.image).astype(int) - upright).mean() < 6


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(tmp_path, mode):
    image = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 16, 32))
    if mode == "P":
        image = image.quantize(8)
    elif mode == "LA":
        image = image.convert("LA")
    values = np.asarray(load_picture(saved(tmp_path, image), 32).image)
    assert (values[:, 20:] == 255).all() and (values[:, :12] < 255).any()


def test_cmyk_becomes_rgb(tmp_path):
    path = saved(tmp_path, Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "x.jpg", quality=100)
    assert np.abs(np.asarray(load_picture(path, 32).image).astype(int) - [255, 0, 0]).max() < 12


@pytest.mark.parametrize("name", ["x.png", "x.tiff"])
def test_sixteen_bits_become_eight(tmp_path, name):
    values = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    path = saved(tmp_path, Image.fromarray(values), name)
    expected = np.round(values / 65535 * 255)
    assert np.abs(np.asarray(load_picture(path, 32).image)[:, :, 0] - expected).max() <= 1


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    path = saved(tmp_path, frames[0], "x.gif", save_all=True, append_images=frames[1:])
    assert load_picture(path, 32).image.getpixel((5, 5)) == (255, 0, 0)


def png_header(width, height):
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_an_enormous_picture_is_refused_without_decoding_it(tmp_path):
    path = tmp_path / "x.png"
    for side in (11_000, 30_000):
        path.write_bytes(png_header(side, side))
        with pytest.raises(ValueError, match=f"too large: Image size .{side * side} pixels.*shrink it first"):
            load_picture(path, 64)


def test_a_tiny_picture_is_refused_with_its_size(tmp_path):
    with pytest.raises(ValueError, match="1 x 1 pixels, at least 16 x 16"):
        load_picture(saved(tmp_path, Image.new("RGB", (1, 1))), 64)


def test_missing_empty_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(OSError, match="none.png"):
        load_picture(tmp_path / "none.png", 64)
    with pytest.raises(OSError, match=str(tmp_path)):
        load_picture(tmp_path, 64)
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(ValueError, match="empty"):
        load_picture(tmp_path / "empty.png", 64)
    (tmp_path / "text.png").write_text("not a picture at all")
    with pytest.raises(ValueError, match="not a picture"):
        load_picture(tmp_path / "text.png", 64)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp", "x.gif", "x.tiff", "x.bmp"])
def test_a_picture_cut_anywhere_is_refused(tmp_path, name):
    """Never a silently grey or half picture; what is cut off behind the last pixel may be missed."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8))
    whole = saved(tmp_path, noise, name).read_bytes()
    for share in (0.02, 0.1, 0.3, 0.6, 0.9):
        (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=name):
            load_picture(tmp_path / name, 64)


def test_prepared_latents_are_the_vaes_mean_and_the_condition_has_one_row(tmp_path):
    base = open_base(pico.folder(), "cpu")
    picture = load_picture(saved(tmp_path, gradient(32, 16)), pico.SIZE)
    example = prepare(base, picture, "a dog")
    vae = base.pipe.vae
    with torch.no_grad():
        expected = vae.encode(picture.pixels).latent_dist.mean * vae.config.scaling_factor
    torch.testing.assert_close(example.latents, expected)
    assert len(example.condition) == 1
    assert example.condition.tensors["time_ids"].tolist() == [[16, 32, 0, 8, 16, 16]]
    assert not example.latents.requires_grad and not example.condition.tensors["text"].requires_grad
