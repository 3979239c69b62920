"""SDXL: a three-level UNet, conditioned on two CLIP text encoders and the image's size and crop (arXiv 2307.01952)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config import FamilyDefaults
from ..image_size import height_and_width
from ..layouts.sdxl import SDXL as LAYOUT
from .condition import Condition, SizeConditioning
from .family import Family, TokenLimits
from .pipeline_steps import PROMPT_EMBEDDINGS, negative_prompts, sample_guided

PREDICTIONS = {
    **dict.fromkeys(("v", "v_prediction", "v-prediction", "v_pred"), "v_prediction"),
    **dict.fromkeys(("epsilon", "eps"), "epsilon"),
}
"""ModelSpec's words and their misspellings -> diffusers'."""


def encode_prompt(pipe: Any, prompts: Sequence[str], sizes: SizeConditioning) -> Condition:
    """SDXL's conditioning: both encoders' penultimate states side by side, the second one's pooled state, size and
    crop.

    Args:    prompts: b of them.  sizes: the same for all.
    Returns: text (b, 77, d1 + d2), pooled (b, p), time_ids (b, 6) = original_size, crop_top_left, target_size.
    """
    device = pipe.text_encoder.device
    text, _, pooled, _ = pipe.encode_prompt(list(prompts), device=device, do_classifier_free_guidance=False)
    six = [*sizes.original_size, *sizes.crop_top_left, *sizes.target_size]
    time_ids = torch.tensor(six, dtype=text.dtype, device=text.device)
    return Condition({"text": text, "pooled": pooled, "time_ids": time_ids.repeat(len(prompts), 1)})


def predict(model: nn.Module, noisy: Tensor, time: Tensor, condition: Condition) -> Tensor:
    """SDXL's prediction, (b, c, h, w) in the UNet's dtype; noisy (b, c, h, w), time (b,), condition of b rows."""
    inputs = condition.tensors
    dtype = inputs["text"].dtype
    extra = {"text_embeds": inputs["pooled"], "time_ids": inputs["time_ids"]}
    return model(noisy.to(dtype), time, inputs["text"], added_cond_kwargs=extra, return_dict=False)[0]


def embed(pipe: Any, prompts: Sequence[str], negative_prompt: str, guidance: float) -> Condition:
    """For SDXL's pipeline, as `encode_prompt`, beside it the negative prompt where classifier-free guidance acts."""
    found = pipe.encode_prompt(
        list(prompts),
        device=pipe.text_encoder.device,
        do_classifier_free_guidance=guidance > 1,
        negative_prompt=negative_prompts(negative_prompt, prompts),
    )
    return Condition({name: x for name, x in zip(PROMPT_EMBEDDINGS, found, strict=True) if x is not None})


def input_shapes(pipe: Any, side: int | tuple[int, int], tokens: TokenLimits) -> dict[str, tuple[int, ...]]:
    """Shapes of what SDXL's `predict` reads for one image."""
    config = pipe.unet.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    text = (1, tokens.clip, config.cross_attention_dim)
    return {
        "latents": (1, config.in_channels, *height_and_width(side)),
        "text": text,
        "pooled": (1, pooled),
        "time_ids": (1, 6),
    }


def text_widths(pipe: Any) -> dict[str, int]:
    """What both encoders make of a prompt."""
    one, two = pipe.text_encoder.config, pipe.text_encoder_2.config
    return {"text": one.hidden_size + two.hidden_size, "pooled": two.projection_dim}


def size_multiple(pipe: Any) -> int:
    """The pipeline refuses sides that are no multiple of 8 or of the VAE's step."""
    return math.lcm(8, pipe.vae_scale_factor)


def scheduler_entries(names: Collection[str], metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a single file of SDXL says of its training, by the empty tensors that ComfyUI and A1111 look for, and by
    ModelSpec's metadata, which tools copy from file to file, so that tensors win.

    Raises: ValueError: noise levels that are no steps (EDM, arXiv 2206.00364), or a prediction that is not known.
    """
    levels = sorted(name for name in names if name.startswith("edm_"))
    if levels:
        raise ValueError(f"its tensor {levels[0]} says that it trained at continuous noise levels, not at steps")
    kind = metadata.get("modelspec.prediction_type", "")
    if kind and kind.lower() not in PREDICTIONS:
        raise ValueError(f"its modelspec.prediction_type is {kind!r:.80}; known: {', '.join(PREDICTIONS)}")
    kind = "v" if "v_pred" in names else kind.lower()
    entries: dict[str, Any] = {"prediction_type": PREDICTIONS[kind]} if kind else {}
    return {**entries, **({"rescale_betas_zero_snr": True} if "ztsnr" in names else {})}


SDXL = Family(
    layout=LAYOUT,
    pipeline="StableDiffusionXLPipeline",
    compatible_pipelines=(
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
        "StableDiffusionXLPAGPipeline",
    ),
    checkpoint_keys=("conditioner.embedders.1.model.ln_final.weight",),
    defaults=FamilyDefaults(),
    text_encoders={"text_encoder": "conditioner.embedders.0.", "text_encoder_2": "conditioner.embedders.1."},
    encode_prompt=encode_prompt,
    predict=predict,
    embed=embed,
    sample=sample_guided,
    size_multiple=size_multiple,
    block_classes=("BasicTransformerBlock", "ResnetBlock2D"),
    input_shapes=input_shapes,
    text_widths=text_widths,
    required_config={
        "addition_embed_type": "text_time",
        "class_embed_type": None,
        "num_class_embeds": None,
        "encoder_hid_dim_type": None,  # images (IP-Adapter, Kandinsky)
        "time_cond_proj_dim": None,  # a guidance, of latent consistency models (arXiv 2310.04378)
    },
    scheduler_entries=scheduler_entries,
)
