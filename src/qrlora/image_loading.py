"""Image files -> RGB images in sRGB, upright and cropped, with masks; damaged files are refused.  [PIL]

Letters: H W pixels.
"""

from __future__ import annotations

import contextlib
import io
import math
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageChops, ImageCms, UnidentifiedImageError

from .crop_geometry import MIN_SIDE, Box, chosen_box, middle_box

if TYPE_CHECKING:
    from torch import Tensor

EXIF_ORIENTATION = 0x0112
"""EXIF's tag of the orientation."""
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the transposition that makes the image upright; other values need none."""
COLOUR_MODES = ("L", "RGB", "CMYK", "LAB")
"""Modes that a colour profile is applied to; others are converted to RGB before."""


@dataclass(frozen=True)
class CroppedImage:
    """An image cropped and resized for a base, with its size and crop. Sizes are (height, width) in pixels."""

    image: Image.Image
    """RGB, target size."""
    original: tuple[int, int]
    """Size of the upright image in the file."""
    corner: tuple[int, int]
    """(top, left) of the crop in the resized image."""
    used: tuple[float, float, float, float]
    """What of the upright image is used: x, y, width, height in its pixels."""
    mask: Image.Image | None = None
    """Mode L, target size: 255 where the image counts, 0 where it is background; None: all of it counts."""

    @property
    def cut_off(self) -> float:
        """Fraction 0..1 of the image's area that is not used."""
        height, width = self.original
        return 1 - self.used[2] * self.used[3] / (width * height)

    @property
    def pixels(self) -> Tensor:
        """The loaded image as (1, 3, H, W) float32 in -1..1."""
        import torch  # not above: who only reads pictures, as the studio's server, does without

        values = torch.from_numpy(np.asarray(self.image, dtype=np.float32).copy())
        return (values / 127.5 - 1).permute(2, 0, 1)[None].contiguous()

    @property
    def mask_values(self) -> Tensor | None:
        """The loaded mask as (1, 1, H, W) float32 in 0..1; None without one."""
        import torch

        if self.mask is None:
            return None
        return torch.from_numpy(np.asarray(self.mask, dtype=np.float32) / 255)[None, None]


def load_image(
    path: str | Path,
    size: int | tuple[int, int],
    crop: tuple[int, int, int] | None = None,
    mask: str | Path | None = None,
) -> CroppedImage:
    """Load an image file, crop it, to its middle unless told otherwise, and resize it to the base's size.

    Without a crop the image is resized (Lanczos) to just cover the size and the middle is cut out. EXIF orientation is
    applied, colours are converted to sRGB by the ICC profile, transparency is put on white, 16 bits a channel become 8;
    of an animation the first frame is taken. The mask is that of the file `mask`, else the image's own alpha channel.

    Args:    size: side of a square, or (height, width), in pixels.
             crop: x, y, side in the upright image, see `crop_geometry.chosen_box`.
             mask: a grey image of the image's size, white where the image counts; transparency counts as black.
    Raises:  OSError: no such file, or it cannot be read.
             ValueError: empty, cut short, no image, under 16 pixels a side, or too large to decode safely; a crop
             that is not within the image; a mask of another size, or one that leaves nothing of the crop.
    """
    image, alpha = load_upright_with_alpha(Path(path))
    target, original = (size, size) if isinstance(size, int) else size, (image.height, image.width)
    try:
        box, corner = middle_box(original, target) if crop is None else chosen_box(original, target, crop)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    weights = alpha if mask is None else _open_mask(Path(mask), image.size, Path(path))
    resized = _resize_box(image, box, target, Image.Resampling.LANCZOS, cut_first=crop is not None)
    if weights is not None:
        weights = _resize_box(weights, box, target, Image.Resampling.BOX, cut_first=crop is not None)
        if weights.getextrema()[1] == 0:
            what = f"the transparency of {path}" if mask is None else f"the mask {mask}"
            raise ValueError(f"{what} leaves nothing of the part that is used: move crop=x,y,side, or change it")
        weights = None if weights.getextrema()[0] == 255 else weights
    used = (box[0], box[1], box[2] - box[0], box[3] - box[1])
    return CroppedImage(image=resized, original=original, corner=corner, used=used, mask=weights)


def _resize_box(
    image: Image.Image, box: Box, target: tuple[int, int], resampling: Image.Resampling, cut_first: bool
) -> Image.Image:
    """A box of an image resized to (height, width).

    Args: cut_first: a filter reads a few pixels beyond a box, and what is outside of a chosen crop must not show.
    """
    height, width = target
    if not cut_first:
        return image.resize((width, height), resampling, box=box)
    outer = (int(box[0]), int(box[1]), math.ceil(box[2]), math.ceil(box[3]))
    within = (box[0] - outer[0], box[1] - outer[1], box[2] - outer[0], box[3] - outer[1])
    return image.crop(outer).resize((width, height), resampling, box=within)


def _open_mask(path: Path, size: tuple[int, int], image: Path) -> Image.Image:
    """A mask file in mode L. Raises ValueError: another size (width, height) than the image's; as `load_image`."""
    mask, alpha = load_upright_with_alpha(path)
    if mask.size != size:
        sizes = f"{mask.width} x {mask.height} pixels, its image {image} {size[0]} x {size[1]}"
        raise ValueError(f"the mask {path} has {sizes}: a mask has the size of its image")
    grey = mask.convert("L")
    return grey if alpha is None else ImageChops.multiply(grey, alpha)


def load_upright(path: Path) -> Image.Image:
    """An upright image in RGB, on white, from a file; bad input is refused with its reason."""
    return load_upright_with_alpha(path)[0]


def load_upright_with_alpha(path: Path) -> tuple[Image.Image, Image.Image | None]:
    """An upright image in RGB on white, and its alpha channel, from a file; bad input is refused with its reason."""
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes): give a picture file")
    if path.exists() and not path.is_file() and not path.is_dir():  # a pipe would be waited for, and is read but once
        raise ValueError(f"{path} is no file on disk: save the picture there first")
    with contextlib.ExitStack() as opened:
        with _refuse_damaged(path):
            image = opened.enter_context(Image.open(path))
            if image.format == "EPS":  # a program, which Pillow hands to Ghostscript
                raise UnidentifiedImageError
        _check_size(path, image)
        with _refuse_damaged(path):
            image.seek(0)
            deep = any(";16" in str(tile) for tile in image.tile)
            image.load()
            transposition = TRANSPOSITIONS.get(_exif_orientation(image))  # pyright: ignore[reportArgumentType]
            return _to_rgb(image if transposition is None else image.transpose(transposition), deep)


@contextlib.contextmanager
def _refuse_damaged(path: Path) -> Iterator[None]:
    """Turn what Pillow raises on damaged files, nearly any exception, into ValueErrors of one line with the path."""
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


def _exif_orientation(image: Image.Image) -> Any:
    """EXIF's orientation of an image; None without one, or if the EXIF data are damaged.

    Not Pillow's exif_transpose: it writes the other EXIF entries again, and fails if it cannot.
    """
    try:
        return image.getexif().get(EXIF_ORIENTATION)
    except (SyntaxError, ValueError, struct.error):  # of PNG and WebP; for a JPEG Pillow ignores it by itself
        return None


def _check_size(path: Path, image: Image.Image) -> None:
    if min(image.size) < MIN_SIDE:
        width, height = image.size
        raise ValueError(f"{path} has {width} x {height} pixels, at least {MIN_SIDE} x {MIN_SIDE} are needed")


def _to_rgb(image: Image.Image, deep: bool) -> tuple[Image.Image, Image.Image | None]:
    """8-bit sRGB on white of any mode, and the alpha channel in mode L; None: opaque.

    Args:   deep: the file has 16 bits a channel; Pillow keeps the upper 8, but a transparent colour whole.
    """
    profile = image.info.get("icc_profile")
    colours, alpha = _split_alpha(image, deep)
    colours = _to_srgb(colours, profile)
    white = Image.new("RGB", colours.size, "white")
    return (colours if alpha is None else Image.composite(colours, white, alpha)), alpha


def _upper_byte(colour: int | tuple[int, ...]) -> int | tuple[int, ...]:
    """A colour of 16 bits a channel in 8."""
    return colour >> 8 if isinstance(colour, int) else tuple(x >> 8 for x in colour)


def _split_alpha(image: Image.Image, deep: bool) -> tuple[Image.Image, Image.Image | None]:
    """The colours, 8 bits in mode L, RGB, CMYK or LAB, and the alpha channel in mode L; None: opaque."""
    transparent = image.info.get("transparency")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError("holds NaN or infinity")
        # 16 bits a pixel is what such files hold, whatever wider type Pillow reads them into; floats are 0..1 or 0..255
        top = 65535 if image.mode != "F" or values.max() > 255 else 255 if values.max() > 1 else 1
        opaque = (
            Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
            if transparent is not None
            else None
        )
        return Image.fromarray(np.clip(values / top * 255, 0, 255).round().astype(np.uint8)), opaque
    if deep and isinstance(transparent, int | tuple):
        image.info["transparency"] = _upper_byte(transparent)
    if image.mode in ("La", "RGBa"):  # premultiplied alpha
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if not image.has_transparency_data:
        return image.convert({"1": "L"}.get(image.mode, image.mode if image.mode in COLOUR_MODES else "RGB")), None
    whole = image.convert("RGBA")
    gray = image.mode in ("1", "L", "LA")
    return whole.getchannel("R") if gray else whole.convert("RGB"), whole.getchannel("A")


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An image converted to sRGB by its ICC profile; without one it is in sRGB already.

    Raises: PyCMSError: a damaged profile, or one of another colour space than the image's.
    """
    if not profile and image.mode != "LAB":
        return image.convert("RGB")
    source: Any = ImageCms.getOpenProfile(io.BytesIO(profile)) if profile else ImageCms.createProfile("LAB")
    if image.mode == "L" and source.profile.xcolor_space.strip() == "RGB":  # as many a gray JPEG has
        image = image.convert("RGB")
    options = {"outputMode": "RGB", "renderingIntent": ImageCms.Intent.RELATIVE_COLORIMETRIC}
    black = ImageCms.Flags.BLACKPOINTCOMPENSATION
    result = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), **options, flags=black)
    assert result is not None  # it is made anew, not changed in place
    return result
