"""Pictures and captions -> what training reads: latents and conditions, computed once. [PIL]

Letters: b batch, c latent channels, h w latent size, H W pixels.
"""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms, UnidentifiedImageError
from torch import Tensor

MIN_SIDE = 16
"""Pixels; a smaller picture shows nothing that could be learnt."""
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientation -> what turns such a picture upright; any other value leaves it as it is."""
PLAIN = ("L", "RGB", "CMYK", "LAB")
"""Modes in which a colour profile is applied."""


@dataclass(frozen=True)
class Picture:
    """A picture cut to the square that a base sees. Sizes are (height, width) in pixels."""

    image: Image.Image
    """RGB, target size."""
    original: tuple[int, int]
    """Size of the upright picture in the file."""
    corner: tuple[int, int]
    """(top, left) of the square in the resized picture."""

    @property
    def pixels(self) -> Tensor:
        """(1, 3, H, W) float32 in -1..1."""
        values = torch.from_numpy(np.asarray(self.image, dtype=np.float32).copy())
        return (values / 127.5 - 1).permute(2, 0, 1)[None].contiguous()


@dataclass(frozen=True)
class Example:
    """All that training needs of one picture."""

    latents: Tensor
    """(1, c, h, w) float32, as the backbone sees them."""
    condition: Any
    """Condition of one row."""
    ordinary: Any = None
    """Condition of prompts that are not about this picture, for a method that asks for it: see `contrast`."""


def load_picture(path: str | Path, size: int) -> Picture:
    """The middle square of a picture, resized to the base's size.

    The shorter side is resized to `size` (Lanczos), then the middle is cut out, as the public SDXL training does.
    Turned upright by its EXIF entry; colours by its profile to sRGB; transparency on white; of an animation the first
    frame; 16 bits to 8.

    Args:    size: side of the square, in pixels.
    Raises:  OSError: no such file, or it cannot be read.
             ValueError: empty, cut short, not a picture, under 16 pixels a side, or too large to decode safely.
    """
    image = _opened(Path(path))
    width, height = image.size
    scale = size / min(width, height)
    fitted = (max(size, round(width * scale)), max(size, round(height * scale)))
    left, top = round((fitted[0] - size) / 2), round((fitted[1] - size) / 2)
    x, y = (
        width / fitted[0],
        height / fitted[1],
    )  # pixels of the file for one of the resized picture, which is never made
    box = (left * x, top * y, min((left + size) * x, width), min((top + size) * y, height))
    square = image.resize((size, size), Image.Resampling.LANCZOS, box=box)
    return Picture(image=square, original=(height, width), corner=(top, left))


def prepare(base: Any, picture: Picture, prompt: str, ordinary: Sequence[str] = ()) -> Example:
    """Latents and condition of one picture with its caption. Neither text encoder nor VAE is needed afterwards.

    The latents are the mean of the VAE's posterior: with one fixed picture a fixed draw would only add noise to learn.

    Args:    base: a families.Base with its text encoders and VAE.  ordinary: prompts of `Example.ordinary`.
    Raises:  ValueError: the VAE or a text encoder answers with NaN or infinity.
    """
    size = (picture.image.height, picture.image.width)
    latents = base.encode_image(picture.pixels)
    if not bool(torch.isfinite(latents).all()):
        raise ValueError(f"the VAE of {base.name} turned the picture into NaN or infinity: try dtype=float32")
    framing = base.framing(original=picture.original, corner=picture.corner, target=size)
    told = base.encode_prompt([prompt, *ordinary], framing)
    if not all(bool(torch.isfinite(x).all()) for x in told.tensors.values()):
        way_out = "try dtype=float32, or bfloat16 if it was float16"
        raise ValueError(f"the text encoders of {base.name} turned the prompt into NaN or infinity: {way_out}")
    others = told.rows(range(1, len(told))) if ordinary else None
    return Example(latents=latents, condition=told.rows([0]), ordinary=others)


def _opened(path: Path) -> Image.Image:
    """An upright RGB picture from a file, every bad input refused with its reason."""
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes): give a picture file")
    with contextlib.ExitStack() as opened:
        with _refusing(path):
            image = opened.enter_context(Image.open(path))
        _check_size(path, image)
        with _refusing(path):
            image.seek(0)
            deep = any(";16" in str(tile) for tile in image.tile)
            image.load()
            turn = TURNS.get(_orientation(image))  # pyright: ignore[reportArgumentType]
            return _rgb(image if turn is None else image.transpose(turn), deep)


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """What Pillow's readers raise on damage, which is nearly any error of Python's, as one line with the path."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Pillow on damaged files: below they become an error
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not a picture that can be read: use PNG, JPEG or WebP") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{path} is too large: {str(error).split(',')[0]}; shrink it first") from error
    except ImageCms.PyCMSError as error:
        raise ValueError(f"{path}: its colour profile cannot be used ({error}): save it as sRGB") from error
    except OSError as error:
        if error.errno is not None:  # from the file system: missing, a folder, no permission
            raise
        raise ValueError(f"{path} is damaged or cut short ({error}): save it again") from error
    except Exception as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{path} is damaged ({what}): save it again") from error


def _orientation(image: Image.Image) -> Any:
    """What EXIF says of how a picture was held; None where it says nothing, or is no EXIF at all.

    Pillow's exif_transpose writes the rest of EXIF anew, and fails where it cannot.
    """
    try:
        return image.getexif().get(ORIENTATION)
    except (SyntaxError, ValueError, struct.error):  # of PNG and WebP; of a JPEG Pillow passes over it by itself
        return None


def _check_size(path: Path, image: Image.Image) -> None:
    if min(image.size) < MIN_SIDE:
        width, height = image.size
        raise ValueError(f"{path} has {width} x {height} pixels, at least {MIN_SIDE} x {MIN_SIDE} are needed")


def _rgb(image: Image.Image, deep: bool) -> Image.Image:
    """8-bit sRGB on white of any mode.

    Args:   deep: the file has 16 bits a channel; Pillow keeps the upper 8, but a transparent colour whole.
    """
    profile = image.info.get("icc_profile")
    colours, alpha = _parted(image, deep)
    colours = _srgb(colours, profile)
    white = Image.new("RGB", colours.size, "white")
    return colours if alpha is None else Image.composite(colours, white, alpha)


def _parted(image: Image.Image, deep: bool) -> tuple[Image.Image, Image.Image | None]:
    """The colours, 8 bits in mode L, RGB, CMYK or LAB, and how opaque they are, in mode L; None: everywhere."""
    clear = image.info.get("transparency")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError("holds NaN or infinity")
        # 16 bits a pixel is what such files hold, whatever wider type Pillow reads them into; floats are 0..1 or 0..255
        top = 65535 if image.mode != "F" or values.max() > 255 else 255 if values.max() > 1 else 1
        opaque = Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)) if clear is not None else None
        return Image.fromarray(np.clip(values / top * 255, 0, 255).round().astype(np.uint8)), opaque
    if deep and isinstance(clear, int | tuple):
        image.info["transparency"] = clear >> 8 if isinstance(clear, int) else tuple(x >> 8 for x in clear)
    if image.mode in ("La", "RGBa"):  # colours times opacity
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if not image.has_transparency_data:
        return image.convert({"1": "L"}.get(image.mode, image.mode if image.mode in PLAIN else "RGB")), None
    whole = image.convert("RGBA")
    gray = image.mode in ("1", "L", "LA")
    return whole.getchannel("R") if gray else whole.convert("RGB"), whole.getchannel("A")


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The colours that a picture's profile (ICC) means, in sRGB; without one they are sRGB already.

    Raises: PyCMSError: a damaged profile, or one of other colours than the picture's.
    """
    if not profile and image.mode != "LAB":
        return image.convert("RGB")
    meant: Any = ImageCms.getOpenProfile(io.BytesIO(profile)) if profile else ImageCms.createProfile("LAB")
    if image.mode == "L" and meant.profile.xcolor_space.strip() == "RGB":  # as many a gray JPEG has
        image = image.convert("RGB")
    told = {"outputMode": "RGB", "renderingIntent": ImageCms.Intent.RELATIVE_COLORIMETRIC}
    black = ImageCms.Flags.BLACKPOINTCOMPENSATION
    result = ImageCms.profileToProfile(image, meant, ImageCms.createProfile("sRGB"), **told, flags=black)
    assert result is not None  # it is made anew, not changed in place
    return result
