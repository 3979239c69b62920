"""Pictures and captions -> what training reads: latents and conditions, computed once. [PIL]

Letters: b batch, c latent channels, h w latent size, H W pixels.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

MIN_SIDE = 16
"""Pixels; a smaller picture shows nothing that could be learnt."""


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
    Turned upright by its EXIF entry; transparency on white; of an animation the first frame; 16 bits to 8.

    Args:    size: side of the square, in pixels.
    Raises:  OSError: no such file, or it cannot be read.
             ValueError: empty, cut short, not a picture, under 16 pixels a side, or too large to decode safely.
    """
    image = _opened(Path(path))
    width, height = image.size
    scale = size / min(width, height)
    fitted = (max(size, round(width * scale)), max(size, round(height * scale)))
    image = image.resize(fitted, Image.Resampling.LANCZOS) if fitted != image.size else image
    left, top = round((fitted[0] - size) / 2), round((fitted[1] - size) / 2)
    square = image.crop((left, top, left + size, top + size))
    return Picture(image=square, original=(height, width), corner=(top, left))


def prepare(base: Any, picture: Picture, prompt: str, ordinary: Sequence[str] = ()) -> Example:
    """Latents and condition of one picture with its caption. Neither text encoder nor VAE is needed afterwards.

    The latents are the mean of the VAE's posterior: with one fixed picture a fixed draw would only add noise to learn.

    Args:    base: a families.Base with its text encoders and VAE.  ordinary: prompts of `Example.ordinary`.
    Raises:  ValueError: the VAE answers with NaN or infinity.
    """
    size = (picture.image.height, picture.image.width)
    latents = base.encode_image(picture.pixels)
    if not bool(torch.isfinite(latents).all()):
        raise ValueError(f"the VAE of {base.name} turned the picture into NaN or infinity: try dtype=float32")
    framing = base.framing(original=picture.original, corner=picture.corner, target=size)
    others = base.encode_prompt(list(ordinary), framing) if ordinary else None
    return Example(latents=latents, condition=base.encode_prompt([prompt], framing), ordinary=others)


def _opened(path: Path) -> Image.Image:
    """An upright RGB picture from a file, every bad input refused with its reason."""
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes): give a picture file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Pillow on damaged files: below they become an error
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                _check_size(path, image)
                image.seek(0)
                image.load()
                return _rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not a picture that can be read: use PNG, JPEG or WebP") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{path} is too large: {str(error).split(',')[0]}; shrink it first") from error
    except OSError as error:
        if error.errno is not None:  # from the file system: missing, a folder, no permission
            raise
        raise ValueError(f"{path} is damaged or cut short ({error}): save it again") from error
    except (
        SyntaxError,
        EOFError,
        IndexError,
        KeyError,
        OverflowError,
        struct.error,
    ) as error:  # what Pillow's readers raise on damage
        raise ValueError(f"{path} is damaged ({error}): save it again") from error


def _check_size(path: Path, image: Image.Image) -> None:
    if min(image.size) < MIN_SIDE:
        width, height = image.size
        raise ValueError(f"{path} has {width} x {height} pixels, at least {MIN_SIDE} x {MIN_SIDE} are needed")


def _rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB on white of any mode."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image, dtype=np.float64)
        # 16 bits a pixel is what such files hold, whatever wider type Pillow reads them into; floats are 0..1 or 0..255
        top = 65535 if image.mode != "F" or values.max() > 255 else 255 if values.max() > 1 else 1
        image = Image.fromarray(np.clip(values / top * 255, 0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
