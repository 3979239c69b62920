"""Z-Image: a transformer on one stream of image and text tokens, conditioned on Qwen3 (arXiv 2511.22699)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config import FamilyDefaults
from ..image_size import ImageSize, height_and_width
from ..layouts.z_image import Z_IMAGE as LAYOUT
from .condition import Condition, SizeConditioning
from .family import Family, TokenLimits
from .pipeline_steps import run_pipeline

TEXT_LENGTH = 512
"""Most tokens of a prompt: the pipeline's own choice."""
TURBO_SHIFT = 3.0
"""Of the scheduler of Z-Image-Turbo, which is distilled to few steps; Z-Image's is 6."""


def encode_prompt(pipe: Any, prompts: Sequence[str], sizes: SizeConditioning) -> Condition:
    """Z-Image's conditioning: Qwen3's penultimate states of the prompt in its chat template. Z-Image reads no size and
    crop.

    Returns: text (b, n, d), n the longest prompt's tokens; the model would attend to padding.
    """
    return Condition.of_texts({"text": _encoded(pipe, prompts)})


def predict(model: nn.Module, noisy: Tensor, time: Tensor, condition: Condition) -> Tensor:
    """Z-Image's velocity noise - x, (b, c, h, w) in the model's dtype; noisy (b, c, h, w), time (b,), condition of b
    rows.

    The model's own time runs from noise, 0, to image, 1, and so does its velocity.
    """
    rope: Any = model.rope_embedder
    if rope.freqs_cis is not None and rope.freqs_cis[0].is_meta:
        rope.freqs_cis = None  # made at the first call: what has no numbers cannot be moved to a device
    texts = condition.texts("text")
    frames = noisy.to(texts[0].dtype).unsqueeze(2).unbind()
    return -torch.stack(model([*frames], (1000 - time) / 1000, texts, return_dict=False)[0]).squeeze(2)


def embed(pipe: Any, prompts: Sequence[str], negative_prompt: str, guidance: float) -> Condition:
    """For Z-Image's pipeline, as `encode_prompt`, beside it the negative prompt where classifier-free guidance acts."""
    texts = {"prompt_embeds": _encoded(pipe, prompts)}
    if rows_per_step(pipe, guidance) > 1:
        texts["negative_prompt_embeds"] = _encoded(pipe, [negative_prompt]) * len(prompts)
    return Condition.of_texts(texts)


def _encoded(pipe: Any, prompts: Sequence[str]) -> list[Tensor]:
    """b tensors (n_k, d); the pipeline writes into the list that it is given."""
    return pipe.encode_prompt(list(prompts), pipe.text_encoder.device, False, max_sequence_length=TEXT_LENGTH)[0]


def sample(
    pipe: Any, told: Condition, size: ImageSize, steps: int, guidance: float, generators: Sequence[torch.Generator]
) -> Tensor:
    """Z-Image's latents (b, c, h, w) with classifier-free guidance p + guidance (p - n)."""
    return run_pipeline(
        pipe, size, steps, generators, guidance_scale=guidance, **{x: told.texts(x) for x in told.tensors}
    )


def rows_per_step(pipe: Any, guidance: float) -> int:
    """Guidance is what other pipelines' is less 1, and acts above 0."""
    return 2 if guidance > 0 else 1


def input_shapes(pipe: Any, side: int | tuple[int, int], tokens: TokenLimits) -> dict[str, tuple[int, ...]]:
    """What `predict` reads for one image, with the longest prompt."""
    config = pipe.transformer.config
    return {
        "latents": (1, config.in_channels, *height_and_width(side)),
        "text": (1, tokens.unpadded, config.cap_feat_dim),
    }


def text_widths(pipe: Any) -> dict[str, int]:
    """What the encoder makes of a prompt."""
    return {"text": pipe.text_encoder.config.hidden_size}


def size_multiple(pipe: Any) -> int:
    """The VAE's step times the transformer's patch."""
    return 2 * pipe.vae_scale_factor


def default_overrides(pipe: Any) -> Mapping[str, Any]:
    """Z-Image-Turbo draws in 8 steps without guidance: its repository's settings. To diffusers before 0.39, whose last
    step did nothing, one gave 9."""
    return {"sample_steps": 8, "guidance": 0.0} if distilled_from(pipe) else {}


def distilled_from(pipe: Any) -> str:
    """Z-Image, for Turbo."""
    return LAYOUT.variants["z-image"].hub if pipe.scheduler.config.shift == TURBO_SHIFT else ""


Z_IMAGE = Family(
    layout=LAYOUT,
    pipeline="ZImagePipeline",
    compatible_pipelines=("ZImageImg2ImgPipeline", "ZImageInpaintPipeline"),
    checkpoint_keys=("cap_pad_token", "layers.0.attention.qkv.weight"),
    beside_a_folder=True,
    defaults=FamilyDefaults(targets="attention", guidance=4.0),
    text_encoders={"text_encoder": "text_encoders.qwen3_4b."},
    encode_prompt=encode_prompt,
    predict=predict,
    embed=embed,
    sample=sample,
    rows_per_step=rows_per_step,
    size_multiple=size_multiple,
    block_classes=("ZImageTransformerBlock",),
    input_shapes=input_shapes,
    text_widths=text_widths,
    encoded_tokens=lambda tokens: TEXT_LENGTH,
    required_config={"siglip_feat_dim": None},  # images beside the words (Z-Image-Omni)
    default_overrides=default_overrides,
    distilled_from=distilled_from,
    time_rises=True,
    flattened=("all_x_embedder.2-1", "cap_embedder.1"),
)
