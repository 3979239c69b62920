"""The least memory that a VAE takes for an image, by which sizes are refused that no machine could sample."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..devices import check_fits_memory
from ..image_size import ImageSize, height_and_width
from .base_model import Base


def least_bytes(vae: nn.Module, height: int, width: int) -> int:
    """Bytes of the widest activation that a VAE has of one image at its full resolution: what the last convolution of
    its decoder reads, or the first of its encoder returns. One that folds squares of pixels into channels has so many
    fewer places; a channel for opacity is taken for a part of the three of RGB."""

    def convolutions(part: str) -> list[Any]:
        return [x for x in vae.get_submodule(part).modules() if isinstance(x, nn.Conv2d | nn.Conv3d)]

    first, last = convolutions("encoder")[0], convolutions("decoder")[-1]
    pairs = ((first.in_channels, first.out_channels), (last.out_channels, last.in_channels))
    size = next(vae.parameters()).element_size()
    return max(height * width * 3 // colours * channels * size for colours, channels in pairs)


def check_size_fits_memory(base: Base, name: str, size: ImageSize) -> None:
    """Raises ValueError: one image of this size takes more memory in a base's VAE than its device has."""
    height, width = height_and_width(size)
    needed = least_bytes(base.pipe.vae, height, width)
    check_fits_memory(f"{name}={size} with {base.name}", needed, base.device, "take a smaller one")
