"""What every family does alike with diffusers' stock pipelines and VAEs.

Letters: b batch, c latent channels, h w latent size, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..image_size import ImageSize, height_and_width
from .condition import Condition


def encode_image(pipe: Any, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Encode with a pipeline's VAE: latents as the backbone sees them, moved and scaled as its config says.

    SDXL: scaling_factor z, after (z - mean) / std where the config has them.  SD3, FLUX: scaling_factor (z - shift).
    FLUX.2: (z - mean) / std of a batch norm over patches of 2 x 2.
    A VAE of videos reads an image as one frame, one of transparent images as one that hides nothing.

    Args:    pixels (b, 3, H, W) in -1..1.  generator: of a draw from the posterior; None: its mean; AutoencoderTiny has
             none.
    Returns: (b, c, h, w) float32, which the VAE is in, too, whatever the base's dtype.
    """
    vae, config = pipe.vae, pipe.vae.config
    found = vae.encode(as_read(vae, pixels.float()))
    if hasattr(found, "latent_dist"):
        z = found.latent_dist.mode() if generator is None else found.latent_dist.sample(generator)
    else:
        z = found.latents  # AutoencoderTiny
    z = z.squeeze(2) if reads_frames(config) else z
    z = (z - _vae_latents_mean(vae, z)) / _vae_latents_deviation(vae, z)
    return (z - (getattr(config, "shift_factor", None) or 0.0)) * (getattr(config, "scaling_factor", None) or 1.0)


def decode_image(pipe: Any, latents: Tensor) -> list[Any]:
    """Decode with a pipeline's VAE: one PIL image for each of the latents (b, c, h, w) as the backbone sees them,
    `encode_image` turned round.

    In float32, since half precision shows: SDXL's VAE overflows in float16, and the built-in bases' lose 15 dB in
    bfloat16. One image at a time: a large one takes gigabytes of activations, and twelve together more than 2^31
    numbers in a tensor.

    Raises: ValueError: NaN or infinity.
    """
    return [image for one in latents.split(1) for image in decode_frames(pipe, one)]


def decode_frames(pipe: Any, latents: Tensor) -> list[Any]:
    """Decode with a pipeline's VAE of videos: the PIL frames of one video's latents (1, c, f, h, w); the image of
    latents (1, c, h, w).

    Raises: ValueError: NaN or infinity.
    """
    vae, config = pipe.vae, pipe.vae.config
    scale, shift = getattr(config, "scaling_factor", None) or 1.0, getattr(config, "shift_factor", None) or 0.0
    z = latents.float() / scale + shift
    z = z * _vae_latents_deviation(vae, z) + _vae_latents_mean(vae, z)
    pixels = vae.decode(as_frames(vae, z), return_dict=False)[0]
    pixels = pixels[0].transpose(0, 1) if reads_frames(config) else pixels
    pixels = pixels[:, :3] if has_alpha(config) else pixels
    if not bool(torch.isfinite(pixels).all()):
        raise ValueError("the VAE made NaN or infinity of an image, which would be black: its weights are damaged")
    if getattr(pipe, "watermark", None) is not None:  # SDXL's, where its library is installed
        pixels = pipe.watermark.apply_watermark(pixels)
    processor = getattr(pipe, "image_processor", None) or pipe.video_processor
    return processor.postprocess(pixels, output_type="pil")


def reads_frames(config: Any) -> bool:
    """Whether a VAE, by its config, is one of videos (b, c, frames, h, w)."""
    return "temperal_downsample" in config  # diffusers' spelling, in each of its VAEs of videos that we open


def as_frames(vae: Any, x: Tensor) -> Tensor:
    """Images or latents (b, c, h, w) as a VAE reads them: a VAE of videos, as videos of one frame; videos stay."""
    return x.unsqueeze(2) if reads_frames(vae.config) and x.ndim == 4 else x


def has_alpha(config: Any) -> bool:
    """Whether a VAE, by its config, reads and makes transparent images: red, green, blue, alpha."""
    return config.get("in_channels") == 4


def as_read(vae: Any, pixels: Tensor) -> Tensor:
    """Images (b, 3, H, W) in -1..1 as a VAE reads them: opaque, as videos of one frame."""
    return as_frames(vae, functional.pad(pixels, (0, 0, 0, 0, 0, 1), value=1.0) if has_alpha(vae.config) else pixels)


def latent_channels(config: Any) -> int:
    """c of a VAE's latents, by its config."""
    return config.get("latent_channels") or config["z_dim"]


def pixels_per_latent(config: Any) -> int:
    """Pixels of a side for each place of a pipeline's latents, by its VAE's config."""
    if reads_frames(config):
        return config.get("scale_factor_spatial") or 2 ** len(config["temperal_downsample"])
    levels = config.get("block_out_channels") or config["decoder_block_out_channels"]
    return 2 ** (len(levels) - 1)


def _vae_latents_mean(vae: Any, z: Tensor) -> Tensor:
    """(1, c, 1, 1, ...) or (1, c, h, w): what the VAE says is the latents' mean; 0 where it says nothing."""
    if hasattr(vae, "bn"):
        return _of_patches(vae.bn.running_mean, z)
    found = getattr(vae.config, "latents_mean", None)
    return z.new_zeros(1) if found is None else z.new_tensor(found).view(1, -1, *[1] * (z.ndim - 2))


def _vae_latents_deviation(vae: Any, z: Tensor) -> Tensor:
    """(1, c, 1, 1, ...) or (1, c, h, w): what the VAE says is the latents' deviation; 1 where it says nothing."""
    if hasattr(vae, "bn"):
        return _of_patches((vae.bn.running_var + vae.config.batch_norm_eps).sqrt(), z)
    found = getattr(vae.config, "latents_std", None)
    return z.new_ones(1) if found is None else z.new_tensor(found).view(1, -1, *[1] * (z.ndim - 2))


def _of_patches(values: Tensor, z: Tensor) -> Tensor:
    """A number for each channel of patches of 2 x 2, (4 c,), at every place of the latents: (1, c, h, w)."""
    patch = functional.pixel_shuffle(values.view(1, -1, 1, 1), 2)
    return patch.repeat(1, 1, z.shape[2] // 2, z.shape[3] // 2)


def run_pipeline(
    pipe: Any, size: ImageSize, steps: int, generators: Sequence[torch.Generator], **arguments: Any
) -> Tensor:
    """Run a stock pipeline for the latents of one image per generator, all in one batch.

    Args:    arguments: what else the family's pipeline takes, embedded prompts among it.
    Returns: as the pipeline leaves them, (b, c, h, w) or packed.
    """
    pipe.set_progress_bar_config(disable=True)
    height, width = height_and_width(size)
    drawn = pipe(
        height=height,
        width=width,
        num_inference_steps=steps,
        generator=list(generators),
        output_type="latent",
        **arguments,
    )
    return drawn[0]


def sample_guided(
    pipe: Any, embedded: Condition, size: ImageSize, steps: int, guidance: float, generators: Sequence[torch.Generator]
) -> Tensor:
    """`Family.sample` of pipelines with classifier-free guidance of this strength; embedded: what `embed` returned."""
    return run_pipeline(pipe, size, steps, generators, guidance_scale=guidance, **embedded.tensors)


PROMPT_EMBEDDINGS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
"""What SDXL's and SD3's pipelines make of prompts, and take in their place; without guidance, of the prompts alone."""


def embed_texts(
    encode: Callable[[Sequence[str]], list[Tensor]], prompts: Sequence[str], negative_prompt: str, guidance: float
) -> Condition:
    """For pipelines that take texts of unequal lengths: the prompts and, where classifier-free guidance acts, beside
    each the negative prompt, empty or not.

    Args: encode: (b texts) -> b tensors (n, d).
    """
    embeddings = {"prompt_embeds": encode(prompts)}
    if guidance > 1:
        embeddings["negative_prompt_embeds"] = encode([negative_prompt] * len(prompts))
    return Condition.of_texts(embeddings)


def negative_prompts(negative_prompt: str, prompts: Sequence[str]) -> list[str] | None:
    """One negative prompt for each prompt; none at all for the base's own idea of "no prompt"."""
    return [negative_prompt] * len(prompts) if negative_prompt else None


def text_length(tokenizer: Any, longest: int) -> int:
    """Tokens that a T5 prompt is padded or cut to: the pipeline's own choice, or fewer if the tokenizer says so."""
    return min(longest, getattr(tokenizer, "model_max_length", longest))
