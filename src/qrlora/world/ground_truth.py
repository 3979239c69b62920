"""The true image of any content in any style: a style is a function, so the correct answer of a fusion is known."""

import warnings
from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from .drawings import HANDS, PLAIN_HAND, load_drawings
from .image_tensors import pil_from_tensor
from .styles import ALL_STYLES


def true_images(contents: Sequence[str], style: str = "plain", hand: str = PLAIN_HAND) -> Tensor:
    """The true images of contents in a style: (b, 3, 128, 128) in 0..1, rounded to 8 bits as a file would hold them.

    Args:   contents: names of `drawings.contents`.
            style: a name of `styles.ALL_STYLES`, applied to the hand's drawings; or a name of `drawings.HANDS`, for
            the plain drawings of that hand.
    Raises: ValueError: no such content, style or hand.
    """
    if style in HANDS:
        return load_drawings(contents, style)
    if style not in ALL_STYLES:
        raise ValueError(f"no style {style!r} in the world; it has {', '.join((*ALL_STYLES, *HANDS))}")
    return (ALL_STYLES[style](load_drawings(contents, hand)).clamp(0, 1) * 255).round() / 255


def true_pictures(names: Sequence[str], style: str = "plain", hand: str = PLAIN_HAND) -> Tensor:
    """The old name of `true_images`; it goes with 0.3."""
    warnings.warn("true_pictures is now true_images; the old name goes with 0.3", DeprecationWarning, stacklevel=2)
    return true_images(names, style, hand)


def true_image(content: str, style: str) -> Image.Image:
    """`true_images` for one content, as a PIL image."""
    return pil_from_tensor(true_images([content], style))[0]
