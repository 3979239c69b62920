"""What every family does alike with diffusers' stock pipelines and VAEs.

Letters: b batch, c latent channels, h w latent size, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def encode_image(pipe: Any, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Latents as the backbone sees them: those of the VAE, moved and scaled as its config says.

    SDXL: scaling_factor z, after (z - mean) / std where the config has them.  SD3, FLUX: scaling_factor (z - shift).

    Args:    pixels (b, 3, H, W) in -1..1.
    Returns: (b, c, h, w) float32.  The VAE runs in float32 whatever its dtype: SDXL's overflows in float16.
    """
    vae, config = pipe.vae, pipe.vae.config
    dtype = vae.dtype
    nn.Module.to(vae, torch.float32)  # diffusers' own `to` would warn about a change that lasts for a moment
    posterior = vae.encode(pixels.float()).latent_dist
    z = posterior.mode() if generator is None else posterior.sample(generator)
    nn.Module.to(vae, dtype)
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        z = (z - z.new_tensor(mean).view(1, -1, 1, 1)) / z.new_tensor(std).view(1, -1, 1, 1)
    return (z - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor


def draw(
    pipe: Any, prompts: Sequence[str], size: int, steps: int, generators: Sequence[torch.Generator], **told: Any
) -> list[Any]:
    """One PIL picture per prompt from a stock pipeline, all in one batch, each with its own generator.

    Args: told: what else the family's pipeline is told.
    """
    pipe.set_progress_bar_config(disable=True)
    pictures = pipe(
        prompt=list(prompts),
        height=size,
        width=size,
        num_inference_steps=steps,
        generator=list(generators),
        **told,
    )
    return pictures.images


def negative(negative_prompt: str, prompts: Sequence[str]) -> list[str] | None:
    """One negative prompt for each prompt; none at all for the base's own idea of "no prompt"."""
    return [negative_prompt] * len(prompts) if negative_prompt else None


def text_length(tokenizer: Any, longest: int) -> int:
    """Tokens that a T5 prompt is padded or cut to: the pipeline's own choice, or fewer if the tokenizer says so."""
    return min(longest, getattr(tokenizer, "model_max_length", longest))
