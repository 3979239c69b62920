"""SDXL: a three-level UNet told by two CLIP text encoders and by the picture's size (arXiv 2307.01952)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config import FamilyDefaults
from .record import Condition, Family, Framing

SELF = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")
CROSS = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")


def encode_prompt(pipe: Any, prompts: Sequence[str], framing: Framing) -> Condition:
    """Both encoders' penultimate states side by side, the second one's pooled state, six numbers about the size.

    Args:    prompts: b of them.  framing: the same for all.
    Returns: text (b, 77, d1 + d2), pooled (b, p), time_ids (b, 6) = original, corner, target, each (height, width).
    """
    text, _, pooled, _ = pipe.encode_prompt(list(prompts), do_classifier_free_guidance=False)
    sizes = torch.tensor([*framing.original, *framing.corner, *framing.target], dtype=text.dtype, device=text.device)
    return Condition({"text": text, "pooled": pooled, "time_ids": sizes.repeat(len(prompts), 1)})


def encode_image(pipe: Any, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Latents as the UNet sees them: (z - mean) / std of the VAE's config where it has them, times its scaling factor.

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
    return z * config.scaling_factor


def predict(model: nn.Module, noisy: Tensor, time: Tensor, condition: Condition) -> Tensor:
    """The UNet's answer, (b, c, h, w) in its own dtype; noisy (b, c, h, w), time (b,), condition of b rows."""
    told = condition.tensors
    dtype = told["text"].dtype
    extra = {"text_embeds": told["pooled"], "time_ids": told["time_ids"]}
    return model(noisy.to(dtype), time, told["text"], added_cond_kwargs=extra, return_dict=False)[0]


def sample(
    pipe: Any,
    prompts: Sequence[str],
    negative_prompt: str,
    size: int,
    steps: int,
    guidance: float,
    generators: Sequence[torch.Generator],
) -> list[Any]:
    """One PIL picture per prompt from the stock pipeline, all in one batch, each with its own generator."""
    pipe.set_progress_bar_config(disable=True)
    pictures = pipe(
        prompt=list(prompts),
        # the pipeline wants one per prompt, and none at all for the base's own idea of "no prompt"
        negative_prompt=[negative_prompt] * len(prompts) if negative_prompt else None,
        height=size,
        width=size,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=list(generators),
    )
    return pictures.images


def size_step(pipe: Any) -> int:
    """The pipeline refuses sides that are no multiple of 8 or of the VAE's step."""
    return math.lcm(8, pipe.vae_scale_factor)


SDXL = Family(
    name="sdxl",
    part="unet",
    pipeline="StableDiffusionXLPipeline",
    checkpoint_key="conditioner.embedders.1.model.ln_final.weight",
    # The paper's text (B.1) says self-attention, its table 3 reads as all attention: 280 or 560 layers.
    targets={"self": SELF, "attention": SELF + CROSS},
    defaults=FamilyDefaults(),
    text_parts=("text_encoder", "text_encoder_2"),
    encode_prompt=encode_prompt,
    encode_image=encode_image,
    predict=predict,
    sample=sample,
    size_step=size_step,
)
