"""FLUX.1: a transformer on packed latents and text tokens, conditioned on T5's states and CLIP's pooled one.

There is no paper; facts are from diffusers' pipeline and public training. FLUX.1-dev is guidance-distilled: it reads a
guidance as a number and has no negative prompt. FLUX.1-schnell, which is step-distilled, and bases that are not
distilled lack that input; their guidance is classifier-free guidance.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..config import FamilyDefaults
from ..image_size import ImageSize, height_and_width
from ..layouts.flux import FLUX as LAYOUT
from .condition import Condition, SizeConditioning
from .family import Family, TokenLimits
from .pipeline_steps import run_pipeline, text_length

TEXT_LENGTH, SCHNELL_TEXT_LENGTH = 512, 256
"""Tokens of T5: the pipeline's own choice, and what FLUX.1-schnell was made for (its model card)."""
TRAINING_GUIDANCE = 3.5
"""The guidance that a guidance-distilled base reads in training: the public training's default, and the pipeline's."""


def distilled(pipe: Any) -> bool:
    """Whether the base reads its guidance as a number."""
    return bool(pipe.transformer.config.guidance_embeds)


def is_schnell(pipe: Any) -> bool:
    """Whether the base is FLUX.1-schnell: it reads no guidance, and its noise levels are not shifted. Bases that were
    freed from FLUX.1-dev's distillation keep the shift, which depends on the image's size."""
    levels = pipe.scheduler.config
    return not distilled(pipe) and not levels.get("use_dynamic_shifting") and levels.get("shift", 1.0) == 1.0


def text_tokens(pipe: Any, longest: int) -> int:
    """T5's tokens of a prompt, of at most so many that the tokenizer takes."""
    return min(longest, SCHNELL_TEXT_LENGTH if is_schnell(pipe) else TEXT_LENGTH)


def encode_prompt(pipe: Any, prompts: Sequence[str], sizes: SizeConditioning) -> Condition:
    """FLUX.1's conditioning: T5's last states, CLIP's pooled state, and the guidance if the base reads one. Size and
    crop are no input.

    Returns: text (b, text_tokens, d), pooled (b, p), guidance (b,) float32.
    """
    text, pooled = _encoded(pipe, prompts)
    guidance = {"guidance": torch.full((len(prompts),), TRAINING_GUIDANCE, device=text.device)}
    return Condition({"text": text, "pooled": pooled, **(guidance if distilled(pipe) else {})})


def predict(model: nn.Module, noisy: Tensor, time: Tensor, condition: Condition) -> Tensor:
    """FLUX.1's prediction (b, c, h, w), in the model's dtype; noisy (b, c, h, w), time (b,), condition of b rows."""
    inputs, (h, w) = condition.tensors, (noisy.shape[2] // 2, noisy.shape[3] // 2)
    prediction = model(
        packed(noisy.to(inputs["text"].dtype)),
        inputs["text"],
        inputs["pooled"],
        time / 1000,  # the model multiplies by 1000, whatever the scheduler's number of steps
        patch_positions(h, w).to(noisy.device, non_blocking=True),
        torch.zeros(inputs["text"].shape[1], 3, device=noisy.device),  # text tokens have no position in the image
        inputs.get("guidance"),
        return_dict=False,
    )[0]
    return unpacked(prediction, h, w)


def packed(latents: Tensor) -> Tensor:
    """Latents (b, c, h, w) as a row of 2 x 2 patches, (b, h w / 4, 4 c)."""
    return functional.pixel_unshuffle(latents, 2).flatten(2).mT


def unpacked(rows: Tensor, h: int, w: int) -> Tensor:
    """Rows of h x w patches, (b, h w, 4 c), as latents (b, c, 2 h, 2 w)."""
    return functional.pixel_shuffle(rows.mT.unflatten(2, (h, w)), 2)


def unpacked_image(pipe: Any, size: ImageSize, rows: Tensor) -> Tensor:
    """Rows of patches of images of `size` pixels as latents (b, c, h, w)."""
    height, width = height_and_width(size)
    return unpacked(rows, height // size_multiple(pipe), width // size_multiple(pipe))


def patch_positions(h: int, w: int) -> Tensor:
    """Each patch's place, (h w, 3) = 0, row, column, for the rotary embedding."""
    return torch.cartesian_prod(torch.zeros(1), torch.arange(h).float(), torch.arange(w).float())


def embed(pipe: Any, prompts: Sequence[str], negative_prompt: str, guidance: float) -> Condition:
    """For FLUX.1's pipeline: T5's last states and CLIP's pooled state, beside them those of the negative prompt where
    classifier-free guidance acts.

    Raises: ValueError: a negative prompt for a distilled base.
    """
    if distilled(pipe) and negative_prompt:
        raise ValueError("this FLUX base is guidance-distilled and reads no negative prompt: leave it empty")
    text, pooled = _encoded(pipe, prompts)
    embedded = {"prompt_embeds": text, "pooled_prompt_embeds": pooled}
    if rows_per_step(pipe, guidance) > 1:
        text, pooled = _encoded(pipe, [negative_prompt] * len(prompts))
        embedded |= {"negative_prompt_embeds": text, "negative_pooled_prompt_embeds": pooled}
    return Condition(embedded)


def _encoded(pipe: Any, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """FLUX.1's text: T5's last states (b, text_tokens, d) and CLIP's pooled state (b, p)."""
    length = text_tokens(pipe, text_length(pipe.tokenizer_2, TEXT_LENGTH))
    options = {"device": pipe.text_encoder.device, "max_sequence_length": length}
    text, pooled, _ = pipe.encode_prompt(list(prompts), None, **options)
    return text, pooled


def sample(
    pipe: Any, embedded: Condition, size: ImageSize, steps: int, guidance: float, generators: Sequence[torch.Generator]
) -> Tensor:
    """FLUX.1's latents of images; `guidance` is the number that a distilled base reads, else the
    strength of classifier-free guidance."""
    strength = {"guidance_scale" if distilled(pipe) else "true_cfg_scale": guidance}
    return unpacked_image(pipe, size, run_pipeline(pipe, size, steps, generators, **strength, **embedded.tensors))


def input_shapes(pipe: Any, side: int | tuple[int, int], tokens: TokenLimits) -> dict[str, tuple[int, ...]]:
    """Shapes of what FLUX.1's `predict` reads for one image; the latents are not packed yet."""
    config = pipe.transformer.config
    text = (1, text_tokens(pipe, tokens.t5), config.joint_attention_dim)
    inputs = {
        "latents": (1, config.in_channels // 4, *height_and_width(side)),
        "text": text,
        "pooled": (1, config.pooled_projection_dim),
    }
    return {**inputs, **({"guidance": (1,)} if config.guidance_embeds else {})}


def text_widths(pipe: Any) -> dict[str, int]:
    """What T5 and CLIP make of a prompt."""
    return {"text": pipe.text_encoder_2.config.d_model, "pooled": pipe.text_encoder.config.hidden_size}


def rows_per_step(pipe: Any, guidance: float) -> int:
    """Classifier-free guidance, two rows that the pipeline asks for one after the other, if no number says it."""
    return 2 if guidance > 1 and not distilled(pipe) else 1


def size_multiple(pipe: Any) -> int:
    """The VAE's step times the patch of 2."""
    return 2 * pipe.vae_scale_factor


def default_overrides(pipe: Any) -> Mapping[str, Any]:
    """FLUX.1-schnell draws in 4 steps without guidance."""
    return {"sample_steps": 4, "guidance": 1.0} if is_schnell(pipe) else {}


def normalize_key(name: str) -> str:
    """Newer files call the scale of a norm its weight."""
    return re.sub(r"\.(key|query)_norm\.weight$", r".\1_norm.scale", name)


FLUX = Family(
    layout=LAYOUT,
    pipeline="FluxPipeline",
    compatible_pipelines=(
        "FluxKontextPipeline",
        "FluxKontextInpaintPipeline",
        "FluxImg2ImgPipeline",
        "FluxInpaintPipeline",
    ),
    checkpoint_keys=("double_blocks.0.img_attn.norm.key_norm.scale", "vector_in.in_layer.weight"),
    defaults=FamilyDefaults(targets="attention-ff", sample_steps=28, guidance=3.5),
    text_encoders={"text_encoder": "text_encoders.clip_l.", "text_encoder_2": "text_encoders.t5xxl."},
    encode_prompt=encode_prompt,
    predict=predict,
    embed=embed,
    sample=sample,
    size_multiple=size_multiple,
    block_classes=("FluxTransformerBlock", "FluxSingleTransformerBlock"),
    input_shapes=input_shapes,
    text_widths=text_widths,
    rows_per_step=rows_per_step,
    default_overrides=default_overrides,
    normalize_key=normalize_key,
)
