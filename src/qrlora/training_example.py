"""Training examples: images and their captions as cached latents and conditioning.

Letters: n images, c latent channels, h w latent size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .image_loading import CroppedImage


@dataclass(frozen=True)
class TrainingExamples:
    """The cached latents and conditioning of the training images, one or several of one subject or style."""

    latents: Tensor
    """(n, c, h, w) float32, scaled as the backbone takes them."""
    condition: Any
    """Conditioning of each image's caption, n rows."""
    loss_weights: Tensor | None = None
    """(n, 1, h, w) float32 of mean 1, see `loss_weights_of`; None: all places weigh the same."""
    ordinary: Any = None
    """Conditioning of prompts for other images, for qr-contrast: see `contrastive_directions`."""

    def __len__(self) -> int:
        return len(self.latents)


def encode_training_examples(
    base: Any, images: Sequence[CroppedImage], captions: Sequence[str], ordinary: Sequence[str] = ()
) -> TrainingExamples:
    """Encode training images and their captions, once: neither text encoders nor VAE are needed afterwards.

    The latents are the mean of the VAE's posterior: of a single image, a fixed sample would only add noise to fit.

    Args:    base: a families.Base with its text encoders and VAE.
             ordinary: prompts of `TrainingExamples.ordinary`; the k-th is of the size and crop of image k modulo n.
    Raises:  ValueError: the VAE or a text encoder returns NaN or infinity.
    """
    latents = torch.cat([base.encode_image(image.pixels) for image in images])
    if not bool(torch.isfinite(latents).all()):
        raise ValueError(f"the VAE of {base.name} turned the image into NaN or infinity: try dtype=float32")
    sizes = [base.size_conditioning(x.original, x.corner, (x.image.height, x.image.width)) for x in images]
    sizes += [sizes[k % len(images)] for k in range(len(ordinary))]
    masks = [image.mask_values for image in images]
    loss_weights = None
    if any(mask is not None for mask in masks):
        loss_weights = torch.cat([loss_weights_of(mask, latents) for mask in masks])
    condition = base.encode_prompts([*captions, *ordinary], sizes)
    if not all(bool(torch.isfinite(x).all()) for x in condition.tensors.values()):
        hint = "try dtype=float32, or bfloat16 if it was float16"
        raise ValueError(f"the text encoders of {base.name} turned the prompt into NaN or infinity: {hint}")
    others = condition.rows(range(len(images), len(condition))) if ordinary else None
    return TrainingExamples(latents, condition.rows(range(len(images))), loss_weights, others)


def loss_weights_of(mask: Tensor | None, latents: Tensor) -> Tensor:
    """A training example's mask as the weight of each place of the latents in the loss, (1, 1, ..., h, w) with as many
    dimensions as the latents.

    weight = m / mean(m), with m the mean of the mask over the pixels of a place: the background has no part in the
    loss, and the loss of an image is the mean over what counts, however small it is.

    Args: mask: (1, 1, H, W) in 0..1; None: ones.  latents: (n, c, ..., h, w).
    """
    size = (int(latents.shape[-2]), int(latents.shape[-1]))
    means = torch.ones(1, 1, *size) if mask is None else functional.adaptive_avg_pool2d(mask, size)
    return (means / means.mean()).view(1, *[1] * (latents.ndim - 3), *size)
