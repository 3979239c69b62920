"""Frames: a third attribute of the synthetic benchmark's images beside content and style, and exactly known as well.

A frame covers the border of an image and leaves the rest as it is, so that the true images of any content in any style
in any frame are known: the frame is over the style, or beneath it and in the style's colours as well.  No built-in base
was trained on frames, and no caption names one.
"""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from .ground_truth import true_images
from .image_tensors import pil_from_tensor
from .styles import ALL_STYLES, grid, mix

WIDTH = 6
"""Of a frame, in 1/64 of the image's side."""


def _framed(x: Tensor, ink: Tensor, low: tuple[float, ...], high: tuple[float, ...]) -> Tensor:
    """An image (b, 3, h, w) with a border in two colours; ``ink`` (h, w) in 0..1: how much of the second."""
    row, column = grid(x)
    size = 64 - WIDTH
    inside = (row >= WIDTH) & (row < size) & (column >= WIDTH) & (column < size)
    return torch.where(inside, x, mix(ink.to(x).expand(1, 1, *x.shape[-2:]), low, high))


def red(x: Tensor) -> Tensor:
    row, column = grid(x)
    return _framed(x, (row + column) * 0, (0.80, 0.08, 0.10), (0, 0, 0))


def striped(x: Tensor) -> Tensor:
    row, column = grid(x)
    return _framed(x, (row + column) % 8 < 4, (0.10, 0.25, 0.75), (0.97, 0.97, 0.97))


def squares(x: Tensor) -> Tensor:
    row, column = grid(x)
    return _framed(x, (row // 3 + column // 3) % 2 == 0, (0.10, 0.10, 0.10), (1.0, 0.80, 0.10))


def unframed(x: Tensor) -> Tensor:
    return x


UNFRAMED = unframed.__name__
FRAMES: dict[str, Callable[[Tensor], Tensor]] = {f.__name__: f for f in (unframed, red, striped, squares)}
"""Name -> a pure function of an image (b, 3, 128, 128) in 0..1, to be applied last; the first changes nothing."""


def framed_image(content: str, style: str, frame: str = UNFRAMED) -> Image.Image:
    """The true image of a content in a style in a frame, the frame over the style. Raises: as `framed_images`."""
    return pil_from_tensor(framed_images([content], style, frame))[0]


def framed_images(contents: Sequence[str], style: str, frame: str, beneath: bool = False) -> Tensor:
    """The true images of contents in a style and a frame: (b, 3, 128, 128) in 0..1, rounded to 8 bits.

    Args:   contents, style, frame: of `drawings.contents`, `styles.ALL_STYLES` (or `drawings.HANDS`, if the frame is
            over it) and FRAMES.  beneath: whether the frame is beneath the style.
    Raises: ValueError: no such content or style.  KeyError: no such frame.
    """
    if beneath:
        images = ALL_STYLES[style](FRAMES[frame](true_images(contents)))
    else:
        images = FRAMES[frame](true_images(contents, style))
    return (images.clamp(0, 1) * 255).round() / 255
