"""Qwen-Image-2.1: a transformer on one stream of words and latents, conditioned on Qwen3-VL's states before their norm.

There is no paper; facts are from diffusers' pipeline. Words see the words before them, the image sees all: the place of
the image follows the last word, so that padding would move it. Rows of different lengths are computed one by one.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config import FamilyDefaults
from ..image_size import ImageSize, height_and_width
from ..layouts.qwen_image_21 import QWEN_IMAGE_21 as LAYOUT
from .condition import Condition, SizeConditioning
from .family import Family, TokenLimits
from .pipeline_steps import embed_texts, run_pipeline
from .qwen_image import check_steps, normalize_key

SYSTEM_TOKENS = 14
"""Of the beginning of the pipeline's template, which the model is not given."""


def encode_prompt(pipe: Any, prompts: Sequence[str], sizes: SizeConditioning) -> Condition:
    """Qwen-Image-2.1's conditioning: Qwen3-VL's states of the prompt and the end of the pipeline's template. The
    image's size and crop are no input.

    Returns: text (b, n, d), n the tokens of the longest prompt.
    """
    return Condition.of_texts({"text": _encoded(pipe, prompts)})


def _encoded(pipe: Any, prompts: Sequence[str]) -> list[Tensor]:
    """b tensors (n_k, d)."""
    text, mask, _ = pipe.encode_prompt(list(prompts), device=pipe.text_encoder.device)
    return [*text] if mask is None else [row[kept.bool()] for row, kept in zip(text, mask, strict=True)]


def predict(model: nn.Module, noisy: Tensor, time: Tensor, condition: Condition) -> Tensor:
    """Qwen-Image-2.1's prediction (b, c, h, w) in the model's dtype; noisy (b, c, h, w), time (b,), condition of b
    rows."""
    if condition.lengths:
        rows = [[k] for k in range(len(noisy))]
        return torch.cat([predict(model, noisy[k], time[k], condition.rows(k)) for k in rows])
    text, (h, w) = condition.tensors["text"], noisy.shape[2:]
    tokens, time = noisy.to(text.dtype).flatten(2).mT, time / 1000
    if noisy.is_meta:
        found = _predict_without_values(model, tokens, text, time)
    else:
        slots = torch.arange(text.shape[1] + h * w // 4, device=noisy.device) >= text.shape[1]  # 4 latents to each
        shapes = [[(1, h, w)]] * len(noisy)
        found = model(tokens, text, time, shapes, slots.expand(len(noisy), -1), return_dict=False)[0]
    return found[:, -h * w :].mT.unflatten(2, (h, w))


def _predict_without_values(model: Any, tokens: Tensor, text: Tensor, time: Tensor) -> Tensor:
    """What the class computes of tokens (b, n, c), text (b, m, d) and time (b,) in 0..1, (b, m + n, c), for counting
    memory: the class itself asks its masks for their values, which the meta device does not have."""
    words, image = model.txt_in(text), model.img_in(tokens)  # the class holds both until its end
    states = torch.cat([words, image], 1)
    embedded = model.time_text_embed(torch.cat([time, time[:1]]).to(states.dtype), states)  # the last: that of words
    is_image = states.new_empty(states.shape[1], dtype=torch.bool)
    angles = states.new_empty(states.shape[1], sum(model.pos_embed.axes_dim) // 2, dtype=torch.complex64)
    inputs = (model.modulation(embedded), angles, None, is_image, None, None, None, [(0, text.shape[1], True)], None)
    recomputed = torch.is_grad_enabled() and model.gradient_checkpointing
    for block in model.transformer_blocks:
        run = functools.partial(model._gradient_checkpointing_func, block) if recomputed else block
        states = run(states, *inputs)
    return model.proj_out(model.norm_out(states, embedded, is_image))


def embed(pipe: Any, prompts: Sequence[str], negative_prompt: str, guidance: float) -> Condition:
    """For Qwen-Image-2.1's pipeline, as `encode_prompt`, beside it the negative prompt, empty or not, where
    classifier-free guidance acts."""
    return embed_texts(lambda texts: _encoded(pipe, texts), prompts, negative_prompt, guidance)


def sample(
    pipe: Any,
    embeddings: Condition,
    size: ImageSize,
    steps: int,
    guidance: float,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Qwen-Image-2.1's latents of images under classifier-free guidance.

    Raises: ValueError: another number of steps than that of the noise levels which a distilled base prescribes; one
            step, as Qwen-Image's.
    """
    if embeddings.lengths:
        rows = (embeddings.rows([k]) for k in range(len(generators)))
        drawn = [sample(pipe, x, size, steps, guidance, [y]) for x, y in zip(rows, generators, strict=True)]
        return torch.cat(drawn)
    if (levels := pipe.config.get("sample_sigmas")) and steps != len(levels):
        raise ValueError(f"this Qwen-Image-2.1 base is distilled to {len(levels)} steps, got {steps}: leave steps out")
    check_steps(pipe, steps)
    rows = run_pipeline(pipe, size, steps, generators, true_cfg_scale=guidance, **embeddings.tensors)
    h, w = (pixels // pipe.vae_scale_factor for pixels in height_and_width(size))
    return rows.mT.unflatten(2, (h, w))


def input_shapes(pipe: Any, side: int | tuple[int, int], tokens: TokenLimits) -> dict[str, tuple[int, ...]]:
    """Shapes of what Qwen-Image-2.1's `predict` reads for one image and a long prompt, which has no limit."""
    config = pipe.transformer.config
    text = (1, tokens.unpadded, config.context_in_dim)
    return {"latents": (1, config.in_channels, *height_and_width(side)), "text": text}


def text_widths(pipe: Any) -> dict[str, int]:
    """What Qwen3-VL makes of a prompt."""
    return {"text": pipe.text_encoder.config.get_text_config().hidden_size}


def default_overrides(pipe: Any) -> Mapping[str, Any]:
    """Qwen-Image-2.1-Turbo draws with the noise levels that its index prescribes."""
    levels = pipe.config.get("sample_sigmas")
    return {"sample_steps": len(levels)} if levels else {}


def distilled_from(pipe: Any) -> str:
    """Qwen-Image-2.1, for Turbo."""
    return LAYOUT.variants["qwen-image-2.1"].hub if pipe.config.get("sample_sigmas") else ""


QWEN_IMAGE_21 = Family(
    layout=LAYOUT,
    pipeline="QwenImage21Pipeline",
    compatible_pipelines=(),
    checkpoint_keys=("txt_in.text_norm.weight", "modulation.1.weight"),
    defaults=FamilyDefaults(targets="attention", sample_steps=40, guidance=1.0),
    text_encoders={"text_encoder": "text_encoders."},
    tokenizers={"text_encoder": "processor"},
    encode_prompt=encode_prompt,
    predict=predict,
    embed=embed,
    sample=sample,
    size_multiple=lambda pipe: 2 * pipe.vae_scale_factor,
    block_classes=("QwenImage21TransformerBlock",),
    input_shapes=input_shapes,
    text_widths=text_widths,
    encoded_tokens=lambda tokens: SYSTEM_TOKENS + tokens.unpadded,
    default_overrides=default_overrides,
    distilled_from=distilled_from,
    normalize_key=normalize_key,
    beside_a_folder=True,
)
