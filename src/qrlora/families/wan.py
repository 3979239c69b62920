"""Wan 2.1 and 2.2-TI2V: a transformer on videos, conditioned on UMT5's states (arXiv 2503.20314). An image is a video
of one frame."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config import FamilyDefaults
from ..image_size import ImageSize, height_and_width
from ..layouts.wan import WAN as LAYOUT
from .condition import Condition, SizeConditioning
from .family import Family, TokenLimits
from .pipeline_steps import PROMPT_EMBEDDINGS, run_pipeline

TEXT_LENGTH = 512
"""Tokens of UMT5, the pipeline's own choice; behind the prompt there are zeros, which the model reads."""


def encode_prompt(pipe: Any, prompts: Sequence[str], sizes: SizeConditioning) -> Condition:
    """Wan's conditioning: UMT5's last states, zeros behind the prompt. The image's size and crop are no input.

    Returns: text (b, TEXT_LENGTH, d).
    """
    return Condition({"text": _encoded(pipe, prompts, False, "")[0]})


def _encoded(pipe: Any, prompts: Sequence[str], guided: bool, negative_prompt: str) -> tuple[Tensor, Tensor | None]:
    options = {"device": pipe.text_encoder.device, "max_sequence_length": TEXT_LENGTH}
    return pipe.encode_prompt(list(prompts), [negative_prompt] * len(prompts), guided, **options)


def predict(model: nn.Module, noisy: Tensor, time: Tensor, condition: Condition) -> Tensor:
    """Wan's prediction (b, c, h, w) or, of videos, (b, c, f, h, w); noisy of that shape, time (b,),
    condition of b rows.

    2.2-TI2V takes a time for each patch; without a frame that is given they are all the same, so that one is enough.
    """
    text = condition.tensors["text"]
    frames = noisy.to(text.dtype).unsqueeze(2) if noisy.ndim == 4 else noisy.to(text.dtype)
    return model(frames, time, text, return_dict=False)[0].view_as(noisy)


def embed(pipe: Any, prompts: Sequence[str], negative_prompt: str, guidance: float) -> Condition:
    """As `encode_prompt`, beside it the negative prompt where classifier-free guidance acts."""
    found = _encoded(pipe, prompts, guidance > 1, negative_prompt)
    return Condition({name: x for name, x in zip(PROMPT_EMBEDDINGS, found, strict=False) if x is not None})


def sample(
    pipe: Any,
    embeddings: Condition,
    size: ImageSize,
    steps: int,
    guidance: float,
    generators: Sequence[torch.Generator],
    frames: int = 1,
) -> Tensor:
    """Wan's latents of images under classifier-free guidance, (b, c, h, w); of videos of more frames, (b, c,
    f, h, w)."""
    options = {"guidance_scale": guidance, "num_frames": frames, **embeddings.tensors}
    latents = run_pipeline(pipe, size, steps, generators, **options)
    return latents.squeeze(2) if frames == 1 else latents


def input_shapes(pipe: Any, side: int | tuple[int, int], tokens: TokenLimits) -> dict[str, tuple[int, ...]]:
    """Shapes of what Wan's `predict` reads for one image."""
    config = pipe.transformer.config
    return {"latents": (1, config.in_channels, *height_and_width(side)), "text": (1, TEXT_LENGTH, config.text_dim)}


def text_widths(pipe: Any) -> dict[str, int]:
    """What UMT5 makes of a prompt."""
    return {"text": pipe.text_encoder.config.d_model}


def size_multiple(pipe: Any) -> int:
    """The VAE's step times the transformer's patch; the pipeline refuses sides that are no multiple of 16."""
    return math.lcm(16, pipe.vae_scale_factor_spatial * pipe.transformer.config.patch_size[1])


def default_overrides(pipe: Any) -> Mapping[str, Any]:
    """As many pixels as a frame of 720p for 2.2-TI2V, which draws no smaller ones; of 480p for the others."""
    return {"resolution": 960} if pipe.transformer.config.in_channels == 48 else {}


WAN = Family(
    layout=LAYOUT,
    pipeline="WanPipeline",
    compatible_pipelines=("WanVideoToVideoPipeline",),
    checkpoint_keys=("head.modulation", "blocks.0.self_attn.q.weight"),
    defaults=FamilyDefaults(targets="attention", resolution=640, sample_steps=50, guidance=5.0),
    text_encoders={"text_encoder": "text_encoders.umt5xxl."},
    encode_prompt=encode_prompt,
    predict=predict,
    embed=embed,
    sample=sample,
    size_multiple=size_multiple,
    block_classes=("WanTransformerBlock",),
    input_shapes=input_shapes,
    text_widths=text_widths,
    default_overrides=default_overrides,
    frames_per_latent=lambda pipe: pipe.vae_scale_factor_temporal,
    required_config={"image_dim": None, "added_kv_proj_dim": None, "pos_embed_seq_len": None},
    required_index={"boundary_ratio": None},
    beside_a_folder=True,
)
