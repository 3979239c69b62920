"""FLUX.2: a transformer on packed latents and words together; klein is conditioned on Qwen3, dev on Mistral.

There is no paper; facts are from diffusers' pipelines and public training. FLUX.2-dev is guidance-distilled: it reads a
guidance as a number. FLUX.2-klein is step-distilled and has none; its base is not distilled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..config import FamilyDefaults
from ..image_size import ImageSize, height_and_width
from ..layouts.flux2 import FLUX2 as LAYOUT
from .condition import Condition, SizeConditioning
from .family import Family, TokenLimits
from .flux import TRAINING_GUIDANCE, distilled, packed, size_multiple, unpacked, unpacked_image
from .pipeline_steps import sample_guided

TEXT_LENGTH = 512
"""TokenLimits of a prompt, padding among them, which the model reads, too: the pipelines' own choice."""
UNCHANGED = SimpleNamespace(
    bn=SimpleNamespace(running_mean=torch.zeros(1), running_var=torch.ones(1)), config=SimpleNamespace(batch_norm_eps=0)
)
"""In place of a VAE: what the pipelines ask it for at the end of drawing, so that latents stay normalised."""


def is_step_distilled(pipe: Any) -> bool:
    """Whether the base is FLUX.2-klein, not its base."""
    return bool(pipe.config.get("is_distilled"))


def encode_prompt(pipe: Any, prompts: Sequence[str], sizes: SizeConditioning) -> Condition:
    """FLUX.2's conditioning: three of the text encoder's states side by side, and the guidance if the base reads one.
    Size and crop are no condition.

    Returns: text (b, TEXT_LENGTH, d), guidance (b,) float32.
    """
    inputs = {"text": _encoded(pipe, prompts)}
    if distilled(pipe):
        inputs["guidance"] = torch.full((len(prompts),), TRAINING_GUIDANCE, device=inputs["text"].device)
    return Condition(inputs)


def _encoded(pipe: Any, prompts: Sequence[str]) -> Tensor:
    return pipe.encode_prompt(list(prompts), pipe.text_encoder.device, max_sequence_length=TEXT_LENGTH)[0]


def predict(model: nn.Module, noisy: Tensor, time: Tensor, condition: Condition) -> Tensor:
    """FLUX.2's velocity, (b, c, h, w) in the model's dtype; noisy (b, c, h, w), time (b,), condition of b rows."""
    text, (h, w) = condition.tensors["text"], (noisy.shape[2] // 2, noisy.shape[3] // 2)
    where = (positions(1, h, w, 1), positions(1, 1, 1, text.shape[1]))
    ids = (x.to(noisy.device, non_blocking=True) for x in where)
    rows, guidance = packed(noisy.to(text.dtype)), condition.tensors.get("guidance")
    return unpacked(model(rows, text, time / 1000, *ids, guidance, return_dict=False)[0], h, w)  # it multiplies by 1000


def positions(*sizes: int) -> Tensor:
    """(n, 4): frame, row, column and word of every token, for the rotary embedding."""
    return torch.cartesian_prod(*map(torch.arange, sizes))


def embed(pipe: Any, prompts: Sequence[str], negative_prompt: str, guidance: float) -> Condition:
    """For FLUX.2's pipeline: the text encoder's states, beside them those of the negative prompt where classifier-free
    guidance acts.

    Raises: ValueError: a negative prompt for a distilled base; guidance for a step-distilled one.
    """
    if negative_prompt and (distilled(pipe) or is_step_distilled(pipe)):
        raise ValueError("this FLUX.2 base is distilled and reads no negative prompt: leave it empty")
    if guidance > 1 and is_step_distilled(pipe):
        raise ValueError(f"this FLUX.2 base is distilled to few steps and has no guidance: give 1, got {guidance:g}")
    told = {"prompt_embeds": _encoded(pipe, prompts)}
    if rows_per_step(pipe, guidance) > 1:
        told["negative_prompt_embeds"] = _encoded(pipe, [negative_prompt] * len(prompts))
    return Condition(told)


def sample(
    pipe: Any, told: Condition, size: ImageSize, steps: int, guidance: float, generators: Sequence[torch.Generator]
) -> Tensor:
    """FLUX.2's latents of images; `guidance` is the number that FLUX.2-dev reads, else the strength
    of classifier-free guidance."""
    before, pipe.vae = pipe.vae, UNCHANGED
    try:
        latents = sample_guided(pipe, told, size, steps, guidance, generators)
    finally:
        pipe.vae = before
    return latents if latents.ndim == 4 else unpacked_image(pipe, size, latents)  # FLUX.2-dev's are packed


def rows_per_step(pipe: Any, guidance: float) -> int:
    """Classifier-free guidance, two rows that the pipeline asks for one after the other, if the base is undistilled."""
    return 2 if guidance > 1 and not distilled(pipe) and not is_step_distilled(pipe) else 1


def input_shapes(pipe: Any, side: int | tuple[int, int], tokens: TokenLimits) -> dict[str, tuple[int, ...]]:
    """Shapes of what FLUX.2's `predict` reads for one image; the latents are not packed yet."""
    config, told = pipe.transformer.config, {"guidance": (1,)} if distilled(pipe) else {}
    latents = (1, config.in_channels // 4, *height_and_width(side))
    return {**told, "latents": latents, "text": (1, TEXT_LENGTH, config.joint_attention_dim)}


def text_widths(pipe: Any) -> dict[str, int]:
    """What the encoder makes of a prompt: three of its states side by side."""
    return {"text": 3 * pipe.text_encoder.config.get_text_config().hidden_size}


def default_overrides(pipe: Any) -> Mapping[str, Any]:
    """FLUX.2-klein draws in 4 steps without guidance."""
    return {"sample_steps": 4, "guidance": 1.0} if is_step_distilled(pipe) else {}


def distilled_from(pipe: Any) -> str:
    """The base of FLUX.2-klein of the same size."""
    return LAYOUT.variant_of("klein base", pipe.transformer.inner_dim).hub if is_step_distilled(pipe) else ""


FLUX2 = Family(
    layout=LAYOUT,
    pipeline="Flux2KleinPipeline",
    other_pipelines=("Flux2Pipeline",),
    compatible_pipelines=("Flux2KleinInpaintPipeline",),
    checkpoint_keys=("double_stream_modulation_img.lin.weight", "double_blocks.0.img_attn.qkv.weight"),
    beside_a_folder=True,
    defaults=FamilyDefaults(targets="attention", guidance=4.0),
    text_encoders={"text_encoder": "text_encoders."},
    encode_prompt=encode_prompt,
    predict=predict,
    embed=embed,
    sample=sample,
    size_multiple=size_multiple,
    block_classes=("Flux2TransformerBlock", "Flux2SingleTransformerBlock"),
    input_shapes=input_shapes,
    text_widths=text_widths,
    rows_per_step=rows_per_step,
    default_overrides=default_overrides,
    distilled_from=distilled_from,
    normalize_key=lambda name: name.removeprefix("model.diffusion_model."),
)
