"""The size of an image as settings hold it, 512 or "768x512", and as (height, width) in pixels."""

import re
from typing import Any

ImageSize = int | str
"""Side of a square in pixels, or "WIDTHxHEIGHT"."""


def parse_image_size(name: str, value: ImageSize | None) -> Any:
    """A size in its one form: a whole number for a square, else "WIDTHxHEIGHT"; None stays None.

    Args:   name: of the setting, for the message.
    Raises: ValueError: neither, or a side under 1.
    """
    if value is None:
        return value
    match = re.fullmatch(r"\s*(\d{1,9})(?:\s*[xX\u00d7]\s*(\d{1,9}))?\s*", str(value))
    if match is None or isinstance(value, bool):
        raise ValueError(f"{name} must be a side in pixels, 512, or WIDTHxHEIGHT, 768x512; got {value!r:.80}")
    width, height = int(match[1]), int(match[2] or match[1])
    if min(width, height) < 1:
        raise ValueError(f"{name} must be 1 or more, got {value}")
    return width if width == height else f"{width}x{height}"


def height_and_width(size: ImageSize | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of an image size, or of a pair that is one already."""
    if isinstance(size, tuple):
        return size
    if isinstance(size, int):
        return size, size
    width, _, height = size.partition("x")
    return int(height or width), int(width)
