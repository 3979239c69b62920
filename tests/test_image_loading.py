"""Pictures as training reads them, and every picture that it refuses."""

import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import pico
import profiles
from qrlora.families import open_base
from qrlora.image_loading import load_image
from qrlora.training_example import encode_training_examples


def gradient(width=40, height=40):
    """Red grows to the right, green downwards: every turn and crop shows."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 0 * x + 128], -1).astype(np.uint8))


def saved(folder, image, name="x.png", **how):
    image.save(folder / name, **how)
    return folder / name


def test_a_picture_of_the_right_size_is_unchanged(tmp_path):
    picture = load_image(saved(tmp_path, gradient(32, 32)), 32)
    assert np.array_equal(picture.image, gradient(32, 32))
    pixels = picture.pixels
    assert pixels.shape == (1, 3, 32, 32) and pixels.dtype == torch.float32
    assert pixels[0, 0, 0, 0] == -1 and pixels[0, 0, 0, -1] == 1 and pixels[0, 1, -1, 0] == 1


def test_the_middle_square_is_cut_out_and_where_is_told(tmp_path):
    """Shorter side to the size, middle cut: 80 x 40 at 20 becomes 40 x 20, of which columns 10..30 stay."""
    picture = load_image(saved(tmp_path, gradient(80, 40)), 20)
    assert picture.image.size == (20, 20)
    assert picture.original == (40, 80) and picture.corner == (0, 10)
    red = np.asarray(picture.image)[:, :, 0]
    assert abs(int(red[0, 0]) - 64) < 8 and abs(int(red[0, -1]) - 191) < 8


def test_a_small_picture_is_enlarged(tmp_path):
    assert load_image(saved(tmp_path, gradient(17, 23)), 64).image.size == (64, 64)


def test_a_picture_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees to see it
    path = saved(tmp_path, gradient(40, 20), "x.jpg", exif=exif, quality=95)
    picture = load_image(path, 20)
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
    values = np.asarray(load_image(saved(tmp_path, image), 32).image)
    assert (values[:, 20:] == 255).all() and (values[:, :12] < 255).any()


def test_cmyk_becomes_rgb(tmp_path):
    path = saved(tmp_path, Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "x.jpg", quality=100)
    assert np.abs(np.asarray(load_image(path, 32).image).astype(int) - [255, 0, 0]).max() < 12


@pytest.mark.parametrize("name", ["x.png", "x.tiff"])
def test_sixteen_bits_become_eight(tmp_path, name):
    values = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    path = saved(tmp_path, Image.fromarray(values), name)
    expected = np.round(values / 65535 * 255)
    assert np.abs(np.asarray(load_image(path, 32).image)[:, :, 0] - expected).max() <= 1


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    path = saved(tmp_path, frames[0], "x.gif", save_all=True, append_images=frames[1:])
    assert load_image(path, 32).image.getpixel((5, 5)) == (255, 0, 0)


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
            load_image(path, 64)


def test_a_tiny_picture_is_refused_with_its_size(tmp_path):
    with pytest.raises(ValueError, match="1 x 1 pixels, at least 16 x 16"):
        load_image(saved(tmp_path, Image.new("RGB", (1, 1))), 64)


def test_missing_empty_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(OSError, match="none.png"):
        load_image(tmp_path / "none.png", 64)
    with pytest.raises(OSError, match=str(tmp_path)):
        load_image(tmp_path, 64)
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(ValueError, match="empty"):
        load_image(tmp_path / "empty.png", 64)
    (tmp_path / "text.png").write_text("not a picture at all")
    with pytest.raises(ValueError, match="not a picture"):
        load_image(tmp_path / "text.png", 64)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp", "x.gif", "x.tiff", "x.bmp"])
def test_a_picture_cut_anywhere_is_refused(tmp_path, name):
    """Never a silently grey or half picture; what is cut off behind the last pixel may be missed."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8))
    whole = saved(tmp_path, noise, name).read_bytes()
    for share in (0.02, 0.1, 0.3, 0.6, 0.9):
        (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=name):
            load_image(tmp_path / name, 64)


def test_a_pipe_is_not_waited_for_and_no_program_is_run(tmp_path):
    """PostScript is a program, which Pillow would hand to Ghostscript where there is one."""
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match="pipe.png is no file on disk: save the picture there first"):
        load_image(tmp_path / "pipe.png", 16)
    Image.new("RGB", (32, 32)).save(tmp_path / "a.eps")
    with pytest.raises(ValueError, match="a.eps is not a picture that can be read: use PNG, JPEG or WebP"):
        load_image(tmp_path / "a.eps", 16)


def test_prepared_latents_are_the_vaes_mean_and_the_condition_has_one_row(tmp_path):
    base = open_base(pico.folder(), "cpu")
    picture = load_image(saved(tmp_path, gradient(32, 16)), pico.SIZE)
    example = encode_training_examples(base, [picture], ["a dog"])
    vae = base.pipe.vae
    with torch.no_grad():
        expected = vae.encode(picture.pixels).latent_dist.mean * vae.config.scaling_factor
    torch.testing.assert_close(example.latents, expected)
    assert len(example.condition) == 1
    assert example.condition.tensors["time_ids"].tolist() == [[16, 32, 0, 8, 16, 16]]
    assert not example.latents.requires_grad and not example.condition.tensors["text"].requires_grad


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp", "x.tiff"])
@pytest.mark.parametrize("space", ["display-p3", "adobe-rgb", "prophoto"])
def test_colours_are_those_that_the_profile_means(tmp_path, space, name):
    for colour in [(40, 160, 80), (128, 128, 128), (100, 60, 200), (250, 240, 200)]:
        how = {"icc_profile": profiles.rgb(space), **({"quality": 100} if name == "x.jpg" else {})}
        how |= {"lossless": True} if name == "x.webp" else {}
        path = saved(tmp_path, Image.new("RGB", (32, 32), colour), name, **how)
        found = np.asarray(load_image(path, 32).image)[16, 16]
        assert np.abs(found - profiles.in_srgb(space, colour)).max() <= (5 if name == "x.jpg" else 2), colour


def test_cmyk_with_a_profile_is_what_its_inks_are(tmp_path):
    """Here cyan ink is red, as no guess without the profile would have it."""
    inks = {"C": (50, 70, 50), "M": (60, -60, 40), "Y": (40, 10, -60), "K": (20, 0, 0)}
    for k, (ink, lab) in enumerate(inks.items()):
        colour = tuple(255 if m == k else 0 for m in range(4))
        image = Image.new("CMYK", (32, 32), colour)
        path = saved(tmp_path, image, "x.tiff", icc_profile=profiles.cmyk(inks))
        found = np.asarray(load_image(path, 32).image)[16, 16]
        assert np.abs(found - profiles.lab_in_srgb(lab)).max() <= 5, ink  # black points are matched, too


def test_gray_palettes_and_transparency_have_profiles_too(tmp_path):
    gray = saved(tmp_path, Image.new("L", (32, 32), 100), "g.png", icc_profile=profiles.gray(1.0))
    linear = 255 * (1.055 * (100 / 255) ** (1 / 2.4) - 0.055)
    assert abs(load_image(gray, 32).image.getpixel((5, 5))[0] - linear) <= 2
    both = saved(tmp_path, Image.new("L", (32, 32), 100), "b.png", icc_profile=profiles.rgb("adobe-rgb"))
    assert (
        np.abs(np.array(load_image(both, 32).image.getpixel((5, 5))) - profiles.in_srgb("adobe-rgb", [100] * 3)).max()
        <= 2
    )
    image = Image.new("RGBA", (32, 32), (40, 160, 80, 255))
    image.paste((0, 0, 0, 0), (0, 0, 32, 16))
    for each, name in ((image, "t.png"), (image.quantize(4), "p.png")):
        found = np.asarray(load_image(saved(tmp_path, each, name, icc_profile=profiles.rgb("display-p3")), 32).image)
        assert (found[:10] == 255).all()
        assert np.abs(found[25, 5] - profiles.in_srgb("display-p3", (40, 160, 80))).max() <= 3


def test_a_profile_that_cannot_be_used_is_refused_by_name(tmp_path):
    good = profiles.rgb("adobe-rgb")
    for profile in (b"junk", good[:200], profiles.gray(2.2), profiles.cmyk({})):
        path = saved(tmp_path, gradient(), icc_profile=profile)
        with pytest.raises(ValueError, match="x.png: its colour profile cannot be used .*sRGB") as error:
            load_image(path, 32)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [(640, 20), (20, 640), (333, 77), (80, 80), (17, 400)])
def test_only_what_is_seen_is_resized_and_it_is_what_resizing_all_would_show(tmp_path, size):
    values = np.random.default_rng(0).integers(
        100, 156, (size[1], size[0], 3)
    )  # in whose sums nothing is cut at 0 or 255
    noise = Image.fromarray(values.astype(np.uint8))
    picture = load_image(saved(tmp_path, noise), 48)
    scale = 48 / min(size)
    whole = noise.resize((max(48, round(size[0] * scale)), max(48, round(size[1] * scale))), Image.Resampling.LANCZOS)
    top, left = picture.corner
    expected = whole.crop((left, top, left + 48, top + 48))
    assert (
        np.abs(np.asarray(picture.image).astype(int) - np.asarray(expected)).max() <= 2
    )  # two passes round, in any order


def test_a_long_strip_takes_the_memory_of_what_is_seen(tmp_path):
    """20,000 x 16 at 1024 pixels would be 1.3 million pixels long: 3.9 GB."""
    path = saved(tmp_path, gradient(20_000, 16))
    script = f"""
from pathlib import Path
from qrlora.image_loading import load_image
assert load_image({str(path)!r}, 1024).image.size == (1024, 1024)
status = Path("/proc/self/status")  # getrusage would count the memory of the process that started this one, too
if status.exists():
    print(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")))
else:
    import resource
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peak = int(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout)
    assert peak < 1e6  # kilobytes, with torch


def test_sixteen_bits_with_transparency_lie_on_white(tmp_path):
    values = np.full((32, 32), 30000, np.uint16)
    values[:16] = 12345
    gray = saved(tmp_path, Image.fromarray(values), "g.png", transparency=12345)
    found = np.asarray(load_image(gray, 32).image)
    assert (found[:12] == 255).all() and np.abs(found[20:].astype(int) - round(30000 / 257)).max() <= 1
    for channels, kind in ((2, 4), (4, 6), (3, 2)):  # gray and alpha, RGBA, RGB with one clear colour
        rows = np.zeros((32, 32, channels), ">u2")
        rows[:] = [0x1234, 0x5678, 0x9ABC, 0xFFFF][:channels]
        rows[..., -1] = np.where(np.arange(32)[:, None] < 16, 0, 0xFFFF) if kind != 2 else 0x9ABC
        rows[:16] = 0 if kind == 2 else rows[:16]
        (tmp_path / "x.png").write_bytes(png(32, 32, rows, kind, b"\0" * 6 if kind == 2 else b""))
        found = np.asarray(load_image(tmp_path / "x.png", 32).image)
        assert (found[:12] == 255).all(), kind
        expected = {2: (0x12, 0x56, 0x9A), 4: (0x12,) * 3, 6: (0x12, 0x56, 0x9A)}[kind]
        assert np.abs(found[25, 5].astype(int) - expected).max() <= 1, kind


def png(width, height, rows, kind, clear=b""):
    """A PNG of 16 bits a channel."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + head + (chunk(b"tRNS", clear) if clear else b"") + body + chunk(b"IEND", b"")


BESIDE = (  # (tag, type, count, content): what cameras and editors leave, some of it no legal EXIF
    (0x010F, 2, 4, b"\xff\xfe\xfd\0"),  # a maker's name that is no text
    (0x0100, 2, 4, b"abc\0"),  # the width as text
    (0x9286, 7, 4, b"\0\0\0\0"),  # a comment outside its own folder
    (0x8769, 4, 1, struct.pack("<I", 0xFFFFFF)),  # a folder that lies behind the end
    (0x8825, 4, 1, struct.pack("<I", 8)),  # a folder that is this one
    (0x011A, 5, 1, struct.pack("<I", 0xFFFFFF)),  # a resolution behind the end
    (0xC4A5, 99, 1, b"abcd"),  # a type that there is not
    (0x0132, 2, 0xFFFFFFF, b"abcd"),  # a date of 268 million letters
)


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.webp"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation_turns_whatever_stands_beside_it(tmp_path, turn, name):
    """Red grows to the right and green downwards in the upright picture, whatever the file's."""
    upright = gradient(40, 40)
    stored = {1: [], 2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}[turn]  # how a camera stores it
    image = upright
    for step in stored:
        image = image.transpose(Image.Transpose(step))
    for beside in BESIDE:
        entries = sorted([(0x0112, 3, 1, struct.pack("<HH", turn, 0)), beside])
        folder = struct.pack("<H", len(entries))
        folder += b"".join(struct.pack("<HHI", *x[:3]) + x[3] for x in entries) + bytes(4)
        exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + folder
        how = {"quality": 95} if name == "x.jpg" else {"lossless": True} if name == "x.webp" else {}
        path = saved(tmp_path, image, name, exif=exif, **how)
        found = np.asarray(load_image(path, 40).image).astype(int)
        assert np.abs(found - np.asarray(upright)).mean() < 6, beside


def test_a_tiff_is_turned_once(tmp_path):
    path = saved(tmp_path, gradient(40, 40).transpose(Image.Transpose.ROTATE_90), "x.tiff", tiffinfo={0x0112: 6})
    assert np.array_equal(np.asarray(load_image(path, 40).image), np.asarray(gradient(40, 40)))


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp"])
@pytest.mark.parametrize(
    "junk", [b"Exif\0\0junk", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff"], ids=repr
)
def test_what_is_no_exif_says_no_orientation(tmp_path, name, junk):
    """Its pixels are whole, and every viewer shows them."""
    plain = saved(tmp_path, gradient(60, 40), f"plain{name}")
    image = load_image(saved(tmp_path, gradient(60, 40), name, exif=junk), 40).image
    assert image.tobytes() == load_image(plain, 40).image.tobytes()
