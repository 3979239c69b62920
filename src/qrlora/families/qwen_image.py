"""Qwen-Image, 1.x and 2512: a transformer on packed latents and text together, conditioned on Qwen2.5-VL's states
(arXiv 2508.02324)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config import FamilyDefaults
from ..image_size import ImageSize, height_and_width
from ..layouts.qwen_image import QWEN_IMAGE as LAYOUT
from .condition import Condition, SizeConditioning
from .family import Family, TokenLimits
from .flux import packed, size_multiple, unpacked, unpacked_image
from .pipeline_steps import embed_texts, run_pipeline

TEXT_LENGTH = 512
"""The most tokens of a prompt, the pipeline's own choice; shorter prompts are not padded."""
TEMPLATE_TOKENS = 34
"""Of the beginning of the pipeline's template, which the model is not given (Krea 2's is the same)."""


def encode_prompt(pipe: Any, prompts: Sequence[str], sizes: SizeConditioning) -> Condition:
    """Qwen-Image's conditioning: Qwen2.5-VL's last states of the prompt behind the pipeline's template. The image's
    size and crop are no input.

    Returns: text (b, n, d), n the tokens of the longest prompt.
    """
    return Condition.of_texts({"text": _encoded(pipe, prompts)})


def _encoded(pipe: Any, prompts: Sequence[str]) -> list[Tensor]:
    """b tensors (n_k, d)."""
    text, mask = pipe.encode_prompt(list(prompts), pipe.text_encoder.device, max_sequence_length=TEXT_LENGTH)
    return [*text] if mask is None else [row[kept.bool()] for row, kept in zip(text, mask, strict=True)]


def predict(model: nn.Module, noisy: Tensor, time: Tensor, condition: Condition) -> Tensor:
    """Qwen-Image's prediction (b, c, h, w) in the model's dtype; noisy (b, c, h, w), time (b,), condition of b rows."""
    text, (h, w) = condition.tensors["text"], (noisy.shape[2] // 2, noisy.shape[3] // 2)
    places = [[(1, h, w)]] * len(noisy)  # one frame
    rows = packed(noisy.to(text.dtype))
    return unpacked(model(rows, text, condition.mask("text"), time / 1000, places, return_dict=False)[0], h, w)


def embed(pipe: Any, prompts: Sequence[str], negative_prompt: str, guidance: float) -> Condition:
    """For Qwen-Image's pipeline, as `encode_prompt`, beside it the negative prompt, empty or not, where classifier-free
    guidance acts."""
    return embed_texts(lambda texts: _encoded(pipe, texts), prompts, negative_prompt, guidance)


def sample(
    pipe: Any,
    embeddings: Condition,
    size: ImageSize,
    steps: int,
    guidance: float,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Qwen-Image's latents of images under classifier-free guidance.

    Raises: ValueError: one step, see `check_steps`.
    """
    check_steps(pipe, steps)
    masks = {}
    for name, text in embeddings.tensors.items():  # the pipeline complains of a text without one
        mask = embeddings.mask(name)
        masks[f"{name}_mask"] = torch.ones_like(text[..., 0], dtype=torch.bool) if mask is None else mask
    rows = run_pipeline(pipe, size, steps, generators, true_cfg_scale=guidance, **embeddings.tensors, **masks)
    return unpacked_image(pipe, size, rows)


def check_steps(pipe: Any, steps: int) -> None:
    """Raises ValueError: one step, whose noise level would be the first and the last at once."""
    if steps < 2 and pipe.scheduler.config.get("shift_terminal"):
        raise ValueError("Qwen-Image's noise levels end above zero, which takes 2 steps or more; got 1")


def input_shapes(pipe: Any, side: int | tuple[int, int], tokens: TokenLimits) -> dict[str, tuple[int, ...]]:
    """Shapes of what Qwen-Image's `predict` reads for one image and the longest prompt; latents not packed yet."""
    config = pipe.transformer.config
    text = (1, tokens.unpadded, config.joint_attention_dim)
    return {"latents": (1, config.in_channels // 4, *height_and_width(side)), "text": text}


def text_widths(pipe: Any) -> dict[str, int]:
    """What Qwen2.5-VL makes of a prompt."""
    return {"text": pipe.text_encoder.config.get_text_config().hidden_size}


def normalize_key(name: str) -> str:
    """ComfyUI's own files have a prefix, which diffusers' conversion keeps."""
    return name.removeprefix("model.").removeprefix("diffusion_model.")


QWEN_IMAGE = Family(
    layout=LAYOUT,
    pipeline="QwenImagePipeline",
    compatible_pipelines=("QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline"),
    checkpoint_keys=("txt_norm.weight", "transformer_blocks.0.img_mod.1.weight"),
    defaults=FamilyDefaults(targets="attention", sample_steps=50, guidance=4.0),
    text_encoders={"text_encoder": "text_encoders.qwen25_7b."},
    encode_prompt=encode_prompt,
    predict=predict,
    embed=embed,
    sample=sample,
    size_multiple=size_multiple,
    block_classes=("QwenImageTransformerBlock",),
    input_shapes=input_shapes,
    text_widths=text_widths,
    encoded_tokens=lambda tokens: TEMPLATE_TOKENS + tokens.unpadded,
    required_config={
        "guidance_embeds": False,
        "zero_cond_t": False,
        "use_additional_t_cond": False,
        "use_layer3d_rope": False,
    },
    normalize_key=normalize_key,
    beside_a_folder=True,
)
