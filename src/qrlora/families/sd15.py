"""Stable Diffusion 1.x and 2.x: a four-level UNet conditioned on one CLIP text encoder (arXiv 2112.10752)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..config import FamilyDefaults
from ..layouts.sd15 import SD15 as LAYOUT
from .family import Condition, Family, Framing, Tokens
from .pipeline_steps import EMBEDDED, draw_guided, negative
from .sdxl import SDXL, size_step, told_by


def encode_prompt(pipe: Any, prompts: Sequence[str], framing: Framing) -> Condition:
    """The encoder's last states. The image's framing is no condition of Stable Diffusion 1 and 2.

    Returns: text (b, 77, d).
    """
    text, _ = pipe.encode_prompt(list(prompts), pipe.text_encoder.device, 1, False)
    return Condition({"text": text})


def predict(model: nn.Module, noisy: Tensor, time: Tensor, condition: Condition) -> Tensor:
    """The UNet's prediction, (b, c, h, w) in its own dtype; noisy (b, c, h, w), time (b,), condition of b rows."""
    text = condition.tensors["text"]
    return model(noisy.to(text.dtype), time, text, return_dict=False)[0]


def embed(pipe: Any, prompts: Sequence[str], negative_prompt: str, guidance: float) -> Condition:
    """As `encode_prompt`, beside it the negative prompt where classifier-free guidance acts."""
    found = pipe.encode_prompt(
        list(prompts), pipe.text_encoder.device, 1, guidance > 1, negative(negative_prompt, prompts)
    )
    return Condition({name: x for name, x in zip(EMBEDDED, found, strict=False) if x is not None})


def shapes(pipe: Any, side: int, tokens: Tokens) -> dict[str, tuple[int, ...]]:
    """What `predict` reads for one image."""
    config = pipe.unet.config
    return {"latents": (1, config.in_channels, side, side), "text": (1, tokens.clip, config.cross_attention_dim)}


def widths(pipe: Any) -> dict[str, int]:
    """What the encoder makes of a prompt."""
    return {"text": pipe.text_encoder.config.hidden_size}


def exceptions(pipe: Any) -> Mapping[str, Any]:
    """The 768 px models of version 2 have latents of 96 x 96; `sample_size` is unset in some repackaged folders."""
    side = pipe.unet.config.sample_size
    return {"resolution": 768} if side == 96 else {}


SD15 = Family(
    layout=LAYOUT,
    pipeline="StableDiffusionPipeline",
    same_parts=(
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipelineLegacy",
        "StableDiffusionPAGPipeline",
    ),
    checkpoint_keys=("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", "out.2.weight"),
    defaults=FamilyDefaults(targets="attention", resolution=512, guidance=7.5),
    text_parts={"text_encoder": "cond_stage_model."},
    encode_prompt=encode_prompt,
    predict=predict,
    embed=embed,
    sample=draw_guided,
    size_step=size_step,
    blocks=SDXL.blocks,
    shapes=shapes,
    widths=widths,
    exceptions=exceptions,
    reads={**SDXL.reads, "addition_embed_type": None},
    told_by=told_by,
)
