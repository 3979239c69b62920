"""Image files -> square RGB images in sRGB, upright and cropped; every damaged file is refused with its reason.  [PIL]

Letters: H W pixels.
"""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

if TYPE_CHECKING:
    from torch import Tensor

MIN_SIDE = 16
"""Pixels a side; a smaller image is refused."""
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
    """An image resized and cropped to a base's square, with its size and crop. Sizes are (height, width) in pixels."""

    image: Image.Image
    """RGB, target size."""
    original: tuple[int, int]
    """Size of the upright image in the file."""
    corner: tuple[int, int]
    """(top, left) of the square in the resized image."""
    used: tuple[float, float, float, float]
    """What of the upright image is used: x, y, width, height in its pixels."""

    @property
    def cut_off(self) -> float:
        """Fraction 0..1 of the image's area that is not used."""
        height, width = self.original
        return 1 - self.used[2] * self.used[3] / (width * height)

    @property
    def pixels(self) -> Tensor:
        """(1, 3, H, W) float32 in -1..1."""
        import torch  # not above: who only reads pictures, as the studio's server, does without

        values = torch.from_numpy(np.asarray(self.image, dtype=np.float32).copy())
        return (values / 127.5 - 1).permute(2, 0, 1)[None].contiguous()


def load_image(path: str | Path, size: int, crop: tuple[int, int, int] | None = None) -> CroppedImage:
    """Load an image file, crop a square of it, the middle one unless told otherwise, and resize it to the base's size.

    Without a crop the shorter side is resized to `size` (Lanczos) and the middle is cut out, as in diffusers' SDXL
    training script. EXIF orientation is applied, colours are converted to sRGB by the ICC profile, transparency is put
    on white, 16 bits a channel become 8; of an animation the first frame is taken.

    Args:    size: side of the square, in pixels.  crop: x, y, side of the square in the upright image.
    Raises:  OSError: no such file, or it cannot be read.
             ValueError: empty, cut short, no image, under 16 pixels a side, or too large to decode safely; a crop
             that is not within the image, or under 16 pixels a side.
    """
    image = load_upright(Path(path))
    width, height = image.size
    box, corner = _middle_square(image.size, size) if crop is None else _chosen_square(path, image.size, size, crop)
    if crop is None:
        square = image.resize((size, size), Image.Resampling.LANCZOS, box=box)
    else:  # cut out first: Lanczos reads a few pixels beyond a box, and what is outside of a crop must not show
        square = image.crop(box).resize((size, size), Image.Resampling.LANCZOS)
    used = (box[0], box[1], box[2] - box[0], box[3] - box[1])
    return CroppedImage(image=square, original=(height, width), corner=corner, used=used)


Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge in an image's pixels."""


def _middle_square(image_size: tuple[int, int], size: int) -> tuple[Box, tuple[int, int]]:
    """The middle of an image of (width, height), and its (top, left) once the shorter side is `size`."""
    width, height = image_size
    scale = size / min(width, height)
    fitted = (max(size, round(width * scale)), max(size, round(height * scale)))
    left, top = round((fitted[0] - size) / 2), round((fitted[1] - size) / 2)
    # pixels of the file for one of the resized image, which is never made
    x, y = width / fitted[0], height / fitted[1]
    return (left * x, top * y, min((left + size) * x, width), min((top + size) * y, height)), (top, left)


def _chosen_square(
    path: str | Path, image_size: tuple[int, int], size: int, crop: tuple[int, int, int]
) -> tuple[Box, tuple[int, int]]:
    """A crop's square, and its (top, left) in the image resized so that the square's side is `size`.

    Raises: ValueError: it is not within the image of (width, height), or too small.
    """
    (width, height), (x, y, side) = image_size, crop
    if side < MIN_SIDE:
        raise ValueError(f"{path}: the side of crop={x},{y},{side} is under {MIN_SIDE} pixels: use {MIN_SIDE} or more")
    if x + side > width or y + side > height:
        has = f"the image has {width} x {height} pixels"
        limits = f"x + side is at most {width}, y + side at most {height}"
        raise ValueError(f"{path}: crop={x},{y},{side} reaches beyond it, {has}: {limits}")
    return (x, y, x + side, y + side), (round(y * size / side), round(x * size / side))


def load_upright(path: Path) -> Image.Image:
    """An upright RGB picture from a file, every bad input refused with its reason."""
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes): give a picture file")
    with contextlib.ExitStack() as opened:
        with _refuse_damaged(path):
            image = opened.enter_context(Image.open(path))
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


def _to_rgb(image: Image.Image, deep: bool) -> Image.Image:
    """8-bit sRGB on white of any mode.

    Args:   deep: the file has 16 bits a channel; Pillow keeps the upper 8, but a transparent colour whole.
    """
    profile = image.info.get("icc_profile")
    colours, alpha = _split_alpha(image, deep)
    colours = _to_srgb(colours, profile)
    white = Image.new("RGB", colours.size, "white")
    return colours if alpha is None else Image.composite(colours, white, alpha)


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
