"""The known styles as filters of PIL images, for `qrlora.filtered_images`."""

from collections.abc import Callable
from functools import partial

from PIL import Image

from .captions import known_words
from .image_tensors import pil_from_tensor, tensor_from_pil
from .styles import STYLES, Style


def known_filters() -> dict[str, Callable[[Image.Image], Image.Image]]:
    """{word that the built-in bases know: filter} of every known style but plain; images are 128 x 128."""
    return {name: partial(_apply, STYLES[name]) for name in known_words("style")}


def _apply(style: Style, image: Image.Image) -> Image.Image:
    return pil_from_tensor(style(tensor_from_pil([image])).clamp(0, 1))[0]
