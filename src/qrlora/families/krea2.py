"""Krea 2: a transformer on packed latents and words, which fuses twelve states of Qwen3-VL for each word.

There is no paper; facts are from diffusers' pipeline and public training. Krea-2-Turbo is distilled to few steps; LoRAs
are trained on Raw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config import FamilyDefaults
from ..image_size import ImageSize, height_and_width
from ..layouts.krea2 import KREA2 as LAYOUT
from .condition import Condition, SizeConditioning
from .family import Family, TokenLimits
from .flux import packed, patch_positions, size_multiple, unpacked, unpacked_image
from .flux2 import is_step_distilled
from .pipeline_steps import sample_guided
from .qwen_image import TEMPLATE_TOKENS
from .z_image import rows_per_step

TEXT_LENGTH = 512
"""Most tokens of a prompt, with the end of its template: the pipeline's own choice."""


def encode_prompt(pipe: Any, prompts: Sequence[str], sizes: SizeConditioning) -> Condition:
    """Krea 2's conditioning: several states of the text encoder for each token of prompt and template's end. Krea 2
    reads no size and crop.

    Returns: text (b, n, layers, d), n the longest prompt's tokens.
    """
    return Condition.of_texts({"text": _encoded(pipe, prompts)})


def _encoded(pipe: Any, prompts: Sequence[str]) -> list[Tensor]:
    """b tensors (n_k, layers, d): without the padding to TEXT_LENGTH between prompt and end, which nothing reads."""
    text, mask = pipe.encode_prompt(list(prompts), pipe.text_encoder.device, max_sequence_length=TEXT_LENGTH)
    return [row[kept] for row, kept in zip(text, mask, strict=True)]


def predict(model: nn.Module, noisy: Tensor, time: Tensor, condition: Condition) -> Tensor:
    """Krea 2's velocity, (b, c, h, w) in the model's dtype; noisy (b, c, h, w), time (b,), condition of b rows."""
    text, (h, w) = condition.tensors["text"], (noisy.shape[2] // 2, noisy.shape[3] // 2)
    positions = torch.cat([torch.zeros(text.shape[1], 3), patch_positions(h, w)]).to(noisy.device, non_blocking=True)
    rows, mask = packed(noisy.to(text.dtype)), condition.mask("text")
    velocity = model(rows, text, time / 1000, positions, mask, return_dict=False)[0]  # it multiplies by 1000
    return unpacked(velocity, h, w)


def embed(pipe: Any, prompts: Sequence[str], negative_prompt: str, guidance: float) -> Condition:
    """For Krea 2's pipeline, as `encode_prompt`, beside it the negative prompt where classifier-free guidance acts; all
    padded to the longest, since the pipeline wants one length, with masks."""
    b, guided = len(prompts), rows_per_step(pipe, guidance) > 1
    texts = Condition.of_texts({"text": _encoded(pipe, [*prompts, *[negative_prompt] * (b * guided)])})
    embeds, mask = texts.tensors["text"], texts.mask("text")
    masks = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device) if mask is None else mask
    told = {"prompt_embeds": embeds[:b], "prompt_embeds_mask": masks[:b]}
    if guided:
        told |= {"negative_prompt_embeds": embeds[b:], "negative_prompt_embeds_mask": masks[b:]}
    return Condition(told)


def sample(
    pipe: Any, told: Condition, size: ImageSize, steps: int, guidance: float, generators: Sequence[torch.Generator]
) -> Tensor:
    """Krea 2's latents (b, c, h, w) with classifier-free guidance p + guidance (p - n)."""
    return unpacked_image(pipe, size, sample_guided(pipe, told, size, steps, guidance, generators))


def input_shapes(pipe: Any, side: int | tuple[int, int], tokens: TokenLimits) -> dict[str, tuple[int, ...]]:
    """Shapes of what Krea 2's `predict` reads for one image and the longest prompt; latents not packed yet."""
    config = pipe.transformer.config
    text = (1, tokens.unpadded, config.num_text_layers, config.text_hidden_dim)
    return {"latents": (1, config.in_channels // 4, *height_and_width(side)), "text": text}


def text_widths(pipe: Any) -> dict[str, int]:
    """What the encoder makes of a prompt."""
    return {"text": pipe.text_encoder.config.get_text_config().hidden_size}


def default_overrides(pipe: Any) -> Mapping[str, Any]:
    """Krea-2-Turbo draws in 8 steps without guidance."""
    return {"sample_steps": 8, "guidance": 0.0} if is_step_distilled(pipe) else {}


def distilled_from(pipe: Any) -> str:
    """Krea-2-Raw, for Turbo."""
    return LAYOUT.variants["krea2-raw"].hub if is_step_distilled(pipe) else ""


KREA2 = Family(
    layout=LAYOUT,
    pipeline="Krea2Pipeline",
    compatible_pipelines=(),
    checkpoint_keys=("txtfusion.projector.weight", "blocks.0.attn.wq.weight"),
    beside_a_folder=True,
    # Its authors' for Raw (krea-ai/krea-2); diffusers' example gives 28 steps and 4.5.
    defaults=FamilyDefaults(targets="public-script", sample_steps=52, guidance=3.5),
    text_encoders={"text_encoder": "text_encoders."},
    encode_prompt=encode_prompt,
    predict=predict,
    embed=embed,
    sample=sample,
    rows_per_step=rows_per_step,
    size_multiple=size_multiple,
    block_classes=("Krea2TransformerBlock",),
    input_shapes=input_shapes,
    text_widths=text_widths,
    encoded_tokens=lambda tokens: TEMPLATE_TOKENS + TEXT_LENGTH,
    default_overrides=default_overrides,
    distilled_from=distilled_from,
    flattened=("text_fusion.layerwise_blocks.*",),
)
