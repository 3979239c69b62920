"""The settings `image` and `mask`, files or folders, and `crop`: one value, or a list with one for each image."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".avif")
"""How the names of image files end, in lower case: those of a folder that are taken for its images."""
PATH_LISTS = ("image", "mask")
"""Settings that take a path or a list of paths."""

Crop = tuple[int, int, int]
"""x, y, side in pixels of the upright image, from its left and upper edge: what of it is used."""


def normalise_paths(value: str | Path | Iterable[str | Path]) -> str | tuple[str, ...]:
    """A path as text; a list of them as a tuple of texts."""
    return str(value) if isinstance(value, str | Path) else tuple(str(path) for path in value)


def split_paths(text: str) -> str | list[str]:
    """The setting `image` or `mask` of a command line: "a.png,b.png" of a command line as a list. A name that exists as
    it stands is one file, with all its commas; so is a text of which no part exists, for the message that it is
    missing."""
    # os.path.exists, not Path.exists: a list may be longer than a file's name can be, which Path takes for an error
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if len(parts) < 2 or os.path.exists(text) or not any(map(os.path.exists, parts)):
        return text
    return parts


def join_repeated(name: str, values: Sequence[Any]) -> Any:
    """The value of a setting that a command line gives once or, `image=a.png image=b.png`, several times."""
    if name not in PATH_LISTS:
        return values[0] if len(values) == 1 else list(values)
    paths = [split_paths(value) if isinstance(value, str) else value for value in values]
    if len(paths) == 1:
        return paths[0]
    return [path for some in paths for path in ([some] if isinstance(some, str) else some)]


def parse_crops(value: str | Sequence[Any]) -> tuple[Crop, ...]:
    """Crops from "x,y,side", from three numbers, or from a list of either with one for each image; () for none.

    Raises: ValueError: not three whole numbers, a negative corner, or a side under 1.
    """
    if isinstance(value, str) or value and all(isinstance(x, int) for x in value):
        return (_parse_one_crop(value),) if value else ()
    return tuple(_parse_one_crop(one) for one in value)


def _parse_one_crop(value: str | Sequence[int]) -> Crop:
    """One `crop`, "x,y,side" or three numbers."""
    numbers: Sequence[Any] = value.split(",") if isinstance(value, str) else value
    try:
        x, y, side = (int(number) for number in numbers)
    except (TypeError, ValueError):
        x = y = side = -1
    if min(x, y) < 0 or side < 1:
        shape = "crop reads x,y,side in whole pixels of the image, from its upper left, such as crop=120,0,800"
        raise ValueError(f"{shape}; got {value!r:.80}")
    return x, y, side


def updates_of_images(updates: int, images: int) -> int:
    """Updates of a training on so many images, of those on one: half as many times as there are images, from once to
    three times; chosen on a development split (docs/log.md)."""
    return round(updates * min(max(images / 2, 1), 3))
