"""Filtered copies of a content's image, each captioned with the name of its filter, to train on beside it.  [PIL]

One image does not say what of it is the content and what its manner.  Copies whose captions name what was done to them
("a <c>, sepia") do: what differs between them is in the captions, so that the adapter has but what they share to learn.
docs/findings.md has what it brought on the built-in bases.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from .image_loading import load_image, load_upright_with_alpha
from .output_files import atomic

Filter = Callable[[Image.Image], Image.Image]
"""An RGB image as another of the same size."""
PLAIN = "plain"
"""The word of a caption that a filter's name takes the place of."""


def _duotone(dark: str, bright: str) -> Filter:
    return lambda image: ImageOps.colorize(ImageOps.grayscale(image), dark, bright)


def _pixelated(image: Image.Image) -> Image.Image:
    small = image.resize((max(1, image.width // 24), max(1, image.height // 24)), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.NEAREST)


def _at_side(side: int, kernel: ImageFilter.Filter | type[ImageFilter.Filter]) -> Filter:
    """A filter of neighbouring pixels, applied at one size, so that it looks alike at any."""

    def filtered(image: Image.Image) -> Image.Image:
        scale = side / max(image.size)
        small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
        return small.filter(kernel).resize(image.size, Image.Resampling.BICUBIC)

    return filtered


COMMON_FILTERS: dict[str, Filter] = {
    "black and white photograph": lambda x: ImageOps.grayscale(x).convert("RGB"),
    "sepia photograph": _duotone("#28140a", "#fff0d2"),
    "blue duotone": _duotone("#0a1450", "#e6f0ff"),
    "red duotone": _duotone("#46000a", "#ffe6dc"),
    "green duotone": _duotone("#00320f", "#ebffe1"),
    "inverted colors": ImageOps.invert,
    "posterized": lambda x: ImageOps.posterize(x, 2),
    "solarized": lambda x: ImageOps.solarize(x, 128),
    "pixelated": _pixelated,
    "blurred": _at_side(256, ImageFilter.GaussianBlur(5)),
    "embossed": _at_side(512, ImageFilter.EMBOSS),
    "outlines": _at_side(512, ImageFilter.CONTOUR),
    "oversaturated": lambda x: ImageEnhance.Color(x).enhance(3),
    "faded colors": lambda x: ImageEnhance.Color(ImageEnhance.Contrast(x).enhance(0.5)).enhance(0.5),
    "high contrast": lambda x: ImageEnhance.Contrast(x).enhance(2.5),
    "at night": lambda x: ImageEnhance.Brightness(x).enhance(0.35),
    "overexposed": lambda x: ImageEnhance.Brightness(x).enhance(1.8),
}
"""Name in captions, without a comma -> filter, for a base whose own words are not known; chosen by us, not measured."""


def filtered_caption(prompt: str, name: str) -> str:
    """The caption of a filtered copy: the name in place of the word "plain" of the prompt, else after a comma."""
    replaced, count = re.subn(rf"\b{PLAIN}\b", lambda _: name, prompt, count=1, flags=re.IGNORECASE)
    return replaced if count else f"{prompt}, {name}"


def write_filtered_images(
    image: Path,
    prompt: str,
    folder: Path,
    filters: Mapping[str, Filter],
    size: int | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write an image and its filtered copies into a folder, 00.png, 01.png ..., each with its caption, 00.txt ...

    The folder is what `image=` of training takes, and most other trainers. Transparency is kept.

    Args:   prompt: the image's own caption.  filters: {name: filter}.
            size: side of a square to crop and resize the image to before; None: as it is.
    Raises: ValueError: no filter, no prompt, an image that cannot be used, or other images in the folder, which would
            be trained on as well.  OSError: the image cannot be read, or the folder not written; FileExistsError: its
            files are there already, without `overwrite`, with which further copies of an earlier call go, too.
    """
    if not prompt.strip() or not filters:
        raise ValueError(f"a caption and at least one filter are needed, got {prompt!r} and {len(filters)} filters")
    opaque, alpha = _load(image, size)
    captions = [prompt, *(filtered_caption(prompt, name) for name in filters)]
    paths = [folder / f"{k:02}.png" for k in range(len(captions))]
    earlier = _check_folder_is_ours(folder, paths, overwrite)
    for path, caption, use in zip(paths, captions, (Image.Image.copy, *filters.values()), strict=True):
        copy = use(opaque).convert("RGB")
        if alpha is not None:
            copy.putalpha(alpha)
        encoded = io.BytesIO()
        copy.save(encoded, "PNG")
        for output, content in ((path, encoded.getvalue()), (path.with_suffix(".txt"), f"{caption}\n".encode())):
            with atomic(output, overwrite) as file:
                file.write(content)
    for path in earlier:
        path.unlink()
    return paths


def _load(image: Path, size: int | None) -> tuple[Image.Image, Image.Image | None]:
    """An image in RGB, on white, and its alpha channel. Raises as `image_loading.load_image`."""
    if size is None:
        return load_upright_with_alpha(image)
    cropped = load_image(image, size)
    return cropped.image, cropped.mask


def _check_folder_is_ours(folder: Path, paths: Sequence[Path], overwrite: bool) -> list[Path]:
    """The images and captions of an earlier call with more filters, which are to be replaced by fewer.

    Raises: ValueError: a folder holds other files than the images, their captions and hidden ones.
    """
    ours = {path.with_suffix(suffix).name for path in paths for suffix in (".png", ".txt")}
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    others = [name for name in there if name not in ours and name[0] != "."]
    pairs = {
        f"{name[:-4]}{suffix}" for name in others if re.fullmatch(r"\d\d+\.png", name) for suffix in (".png", ".txt")
    }
    if others and not (overwrite and {*others} == pairs):  # a lone 57.png may be somebody's photograph
        raise ValueError(f"{folder} holds other files, such as {others[0]}: give a new folder with --output")
    return [folder / name for name in others]
