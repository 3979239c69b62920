"""Stable Diffusion 1.x and 2.x: a four-level UNet conditioned on one CLIP text encoder (arXiv 2112.10752)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..config import FamilyDefaults
from ..image_size import height_and_width
from ..layouts.sd15 import SD15 as LAYOUT
from .condition import Condition, SizeConditioning
from .family import Family, TokenLimits
from .pipeline_steps import PROMPT_EMBEDDINGS, negative_prompts, sample_guided
from .sdxl import SDXL, scheduler_entries, size_multiple


def encode_prompt(pipe: Any, prompts: Sequence[str], sizes: SizeConditioning) -> Condition:
    """Stable Diffusion 1 and 2's conditioning: the CLIP text encoder's last states. They read no size and crop.

    Returns: text (b, 77, d).
    """
    text, _ = pipe.encode_prompt(list(prompts), pipe.text_encoder.device, 1, False)
    return Condition({"text": text})


def predict(model: nn.Module, noisy: Tensor, time: Tensor, condition: Condition) -> Tensor:
    """Stable Diffusion 1 and 2's prediction, (b, c, h, w) in the UNet's dtype; noisy (b, c, h, w), time (b,)."""
    text = condition.tensors["text"]
    return model(noisy.to(text.dtype), time, text, return_dict=False)[0]


def embed(pipe: Any, prompts: Sequence[str], negative_prompt: str, guidance: float) -> Condition:
    """For the pipeline of Stable Diffusion 1 and 2, as `encode_prompt`, beside it the negative prompt where
    classifier-free guidance acts."""
    found = pipe.encode_prompt(
        list(prompts), pipe.text_encoder.device, 1, guidance > 1, negative_prompts(negative_prompt, prompts)
    )
    return Condition({name: x for name, x in zip(PROMPT_EMBEDDINGS, found, strict=False) if x is not None})


def input_shapes(pipe: Any, side: int | tuple[int, int], tokens: TokenLimits) -> dict[str, tuple[int, ...]]:
    """Shapes of what the UNet of Stable Diffusion 1 and 2 reads for one image."""
    config = pipe.unet.config
    return {
        "latents": (1, config.in_channels, *height_and_width(side)),
        "text": (1, tokens.clip, config.cross_attention_dim),
    }


def text_widths(pipe: Any) -> dict[str, int]:
    """What the encoder makes of a prompt."""
    return {"text": pipe.text_encoder.config.hidden_size}


def default_overrides(pipe: Any) -> Mapping[str, Any]:
    """The 768 px models of version 2 have latents of 96 x 96; `sample_size` is unset in some repackaged folders."""
    side = pipe.unet.config.sample_size
    return {"resolution": 768} if side == 96 else {}


SD15 = Family(
    layout=LAYOUT,
    pipeline="StableDiffusionPipeline",
    compatible_pipelines=(
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipelineLegacy",
        "StableDiffusionPAGPipeline",
    ),
    checkpoint_keys=("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", "out.2.weight"),
    defaults=FamilyDefaults(targets="attention", resolution=512, guidance=7.5),
    text_encoders={"text_encoder": "cond_stage_model."},
    encode_prompt=encode_prompt,
    predict=predict,
    embed=embed,
    sample=sample_guided,
    size_multiple=size_multiple,
    block_classes=SDXL.block_classes,
    input_shapes=input_shapes,
    text_widths=text_widths,
    default_overrides=default_overrides,
    required_config={**SDXL.required_config, "addition_embed_type": None},
    scheduler_entries=scheduler_entries,
)
