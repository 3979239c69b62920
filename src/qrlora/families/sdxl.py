"""SDXL: a three-level UNet told by two CLIP text encoders and by the picture's size (arXiv 2307.01952)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config import FamilyDefaults
from ..layouts.sdxl import SDXL as LAYOUT
from .family import Condition, Family, Framing, Tokens
from .pipeline_steps import EMBEDDED, draw_guided, negative

PREDICTIONS = {
    **dict.fromkeys(("v", "v_prediction", "v-prediction", "v_pred"), "v_prediction"),
    **dict.fromkeys(("epsilon", "eps"), "epsilon"),
}
"""ModelSpec's words and their misspellings -> diffusers'."""


def encode_prompt(pipe: Any, prompts: Sequence[str], framing: Framing) -> Condition:
    """Both encoders' penultimate states side by side, the second one's pooled state, six numbers about the size.

    Args:    prompts: b of them.  framing: the same for all.
    Returns: text (b, 77, d1 + d2), pooled (b, p), time_ids (b, 6) = original, corner, target, each (height, width).
    """
    device = pipe.text_encoder.device
    text, _, pooled, _ = pipe.encode_prompt(list(prompts), device=device, do_classifier_free_guidance=False)
    sizes = torch.tensor([*framing.original, *framing.corner, *framing.target], dtype=text.dtype, device=text.device)
    return Condition({"text": text, "pooled": pooled, "time_ids": sizes.repeat(len(prompts), 1)})


def predict(model: nn.Module, noisy: Tensor, time: Tensor, condition: Condition) -> Tensor:
    """The UNet's answer, (b, c, h, w) in its own dtype; noisy (b, c, h, w), time (b,), condition of b rows."""
    told = condition.tensors
    dtype = told["text"].dtype
    extra = {"text_embeds": told["pooled"], "time_ids": told["time_ids"]}
    return model(noisy.to(dtype), time, told["text"], added_cond_kwargs=extra, return_dict=False)[0]


def embed(pipe: Any, prompts: Sequence[str], negative_prompt: str, guidance: float) -> Condition:
    """As `encode_prompt`, beside it the negative prompt where classifier-free guidance acts."""
    found = pipe.encode_prompt(
        list(prompts),
        device=pipe.text_encoder.device,
        do_classifier_free_guidance=guidance > 1,
        negative_prompt=negative(negative_prompt, prompts),
    )
    return Condition({name: x for name, x in zip(EMBEDDED, found, strict=True) if x is not None})


def shapes(pipe: Any, side: int, tokens: Tokens) -> dict[str, tuple[int, ...]]:
    """What `predict` reads for one picture."""
    config = pipe.unet.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    text = (1, tokens.clip, config.cross_attention_dim)
    return {"latents": (1, config.in_channels, side, side), "text": text, "pooled": (1, pooled), "time_ids": (1, 6)}


def widths(pipe: Any) -> dict[str, int]:
    """What both encoders make of a prompt."""
    one, two = pipe.text_encoder.config, pipe.text_encoder_2.config
    return {"text": one.hidden_size + two.hidden_size, "pooled": two.projection_dim}


def size_step(pipe: Any) -> int:
    """The pipeline refuses sides that are no multiple of 8 or of the VAE's step."""
    return math.lcm(8, pipe.vae_scale_factor)


def told_by(names: Collection[str], metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a single file says of its training, by the empty tensors that ComfyUI and A1111 look for, and by ModelSpec's
    metadata, which tools copy from file to file, so that tensors win.

    Raises: ValueError: noise levels that are no steps (EDM, arXiv 2206.00364), or a prediction that is not known.
    """
    levels = sorted(name for name in names if name.startswith("edm_"))
    if levels:
        raise ValueError(f"its tensor {levels[0]} says that it learnt at continuous noise levels, not at steps")
    kind = metadata.get("modelspec.prediction_type", "")
    if kind and kind.lower() not in PREDICTIONS:
        raise ValueError(f"its modelspec.prediction_type is {kind!r:.80}; known: {', '.join(PREDICTIONS)}")
    kind = "v" if "v_pred" in names else kind.lower()
    told: dict[str, Any] = {"prediction_type": PREDICTIONS[kind]} if kind else {}
    return {**told, **({"rescale_betas_zero_snr": True} if "ztsnr" in names else {})}


SDXL = Family(
    layout=LAYOUT,
    pipeline="StableDiffusionXLPipeline",
    same_parts=(
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
        "StableDiffusionXLPAGPipeline",
    ),
    checkpoint_keys=("conditioner.embedders.1.model.ln_final.weight",),
    defaults=FamilyDefaults(),
    text_parts={"text_encoder": "conditioner.embedders.0.", "text_encoder_2": "conditioner.embedders.1."},
    encode_prompt=encode_prompt,
    predict=predict,
    embed=embed,
    sample=draw_guided,
    size_step=size_step,
    blocks=("BasicTransformerBlock", "ResnetBlock2D"),
    shapes=shapes,
    widths=widths,
    reads={
        "addition_embed_type": "text_time",
        "class_embed_type": None,
        "num_class_embeds": None,
        "encoder_hid_dim_type": None,  # pictures (IP-Adapter, Kandinsky)
        "time_cond_proj_dim": None,  # a guidance, of latent consistency models (arXiv 2310.04378)
    },
    told_by=told_by,
)
