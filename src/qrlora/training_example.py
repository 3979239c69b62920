"""A training example: one image and its caption as cached latents and conditioning.

Letters: c latent channels, h w latent size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .image_loading import CroppedImage


@dataclass(frozen=True)
class TrainingExample:
    """The cached latents and conditioning of one training image."""

    latents: Tensor
    """(1, c, h, w) float32, scaled as the backbone takes them."""
    condition: Any
    """Conditioning of the training prompt, one row."""
    ordinary: Any = None
    """Conditioning of prompts for other images, for qr-contrast: see `contrastive_directions`."""


def encode_training_example(
    base: Any, image: CroppedImage, prompt: str, ordinary: Sequence[str] = ()
) -> TrainingExample:
    """Encode a training image and its caption, once: neither text encoders nor VAE are needed afterwards.

    The latents are the mean of the VAE's posterior: of a single image, a fixed sample would only add noise to fit.

    Args:    base: a families.Base with its text encoders and VAE.  ordinary: prompts of `TrainingExample.ordinary`.
    Raises:  ValueError: the VAE or a text encoder returns NaN or infinity.
    """
    size = (image.image.height, image.image.width)
    latents = base.encode_image(image.pixels)
    if not bool(torch.isfinite(latents).all()):
        raise ValueError(f"the VAE of {base.name} turned the image into NaN or infinity: try dtype=float32")
    framing = base.framing(original=image.original, corner=image.corner, target=size)
    condition = base.encode_prompt([prompt, *ordinary], framing)
    if not all(bool(torch.isfinite(x).all()) for x in condition.tensors.values()):
        hint = "try dtype=float32, or bfloat16 if it was float16"
        raise ValueError(f"the text encoders of {base.name} turned the prompt into NaN or infinity: {hint}")
    others = condition.rows(range(1, len(condition))) if ordinary else None
    return TrainingExample(latents=latents, condition=condition.rows([0]), ordinary=others)
