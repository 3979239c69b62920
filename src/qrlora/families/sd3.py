"""Stable Diffusion 3 and 3.5: a transformer on image and text tokens, conditioned on two CLIPs and, if present, T5
(arXiv 2403.03206)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..config import FamilyDefaults
from ..image_size import height_and_width
from ..layouts.sd3 import SD3 as LAYOUT
from .condition import Condition, SizeConditioning
from .family import Family, TokenLimits
from .pipeline_steps import PROMPT_EMBEDDINGS, negative_prompts, sample_guided, text_length

T5_LENGTH = 256
"""Tokens of T5, or zeros in their place, beside CLIP's 77: the pipeline's own choice."""


def encode_prompt(pipe: Any, prompts: Sequence[str], sizes: SizeConditioning) -> Condition:
    """SD3's conditioning: both CLIPs' penultimate states side by side, padded to T5's width d, T5's states behind them,
    pooled states.

    A base without T5 gets zeros in its place, as in the pipeline. The image's size and crop are no input of SD3.

    Returns: text (b, 77 + T5_LENGTH, d), pooled (b, p1 + p2).
    """
    length = text_length(pipe.tokenizer_3, T5_LENGTH)
    options = {"device": pipe.text_encoder.device, "do_classifier_free_guidance": False, "max_sequence_length": length}
    text, _, pooled, _ = pipe.encode_prompt(list(prompts), None, None, **options)
    return Condition({"text": text, "pooled": pooled})


def predict(model: nn.Module, noisy: Tensor, time: Tensor, condition: Condition) -> Tensor:
    """SD3's prediction (b, c, h, w), in the transformer's dtype; noisy (b, c, h, w), time (b,), condition of b rows."""
    inputs = condition.tensors
    return model(noisy.to(inputs["text"].dtype), inputs["text"], inputs["pooled"], time, return_dict=False)[0]


def embed(pipe: Any, prompts: Sequence[str], negative_prompt: str, guidance: float) -> Condition:
    """For SD3's pipeline, as `encode_prompt`, beside it the negative prompt where classifier-free guidance acts."""
    found = pipe.encode_prompt(
        list(prompts),
        None,
        None,
        device=pipe.text_encoder.device,
        do_classifier_free_guidance=guidance > 1,
        negative_prompt=negative_prompts(negative_prompt, prompts),
        max_sequence_length=text_length(pipe.tokenizer_3, T5_LENGTH),
    )
    return Condition({name: x for name, x in zip(PROMPT_EMBEDDINGS, found, strict=True) if x is not None})


def input_shapes(pipe: Any, side: int | tuple[int, int], tokens: TokenLimits) -> dict[str, tuple[int, ...]]:
    """Shapes of what SD3's `predict` reads for one image."""
    config = pipe.transformer.config
    text = (1, tokens.clip + min(T5_LENGTH, tokens.t5), config.joint_attention_dim)
    return {
        "latents": (1, config.in_channels, *height_and_width(side)),
        "text": text,
        "pooled": (1, config.pooled_projection_dim),
    }


def text_widths(pipe: Any) -> dict[str, int]:
    """SD3's text widths: what both CLIPs and T5 make of a prompt; without T5 the pipeline pads CLIP's states to what is
    asked for."""
    t5, wanted = pipe.text_encoder_3, pipe.transformer.config.joint_attention_dim
    pooled = pipe.text_encoder.config.projection_dim + pipe.text_encoder_2.config.projection_dim
    return {"text": t5.config.d_model if t5 else wanted, "pooled": pooled}


def size_multiple(pipe: Any) -> int:
    """The VAE's step times the transformer's patch."""
    return pipe.vae_scale_factor * pipe.patch_size


SD3 = Family(
    layout=LAYOUT,
    pipeline="StableDiffusion3Pipeline",
    compatible_pipelines=(
        "StableDiffusion3Img2ImgPipeline",
        "StableDiffusion3InpaintPipeline",
        "StableDiffusion3PAGPipeline",
    ),
    checkpoint_keys=("joint_blocks.0.context_block.adaLN_modulation.1.weight",),
    defaults=FamilyDefaults(targets="attention", timestep_sampling="logit-normal", sample_steps=28, guidance=7.0),
    text_encoders={
        "text_encoder": "text_encoders.clip_l.",
        "text_encoder_2": "text_encoders.clip_g.",
        "text_encoder_3": "text_encoders.t5xxl.",
    },
    optional_components=("text_encoder_3", "tokenizer_3"),
    encode_prompt=encode_prompt,
    predict=predict,
    embed=embed,
    sample=sample_guided,
    size_multiple=size_multiple,
    block_classes=("JointTransformerBlock",),
    input_shapes=input_shapes,
    text_widths=text_widths,
)
