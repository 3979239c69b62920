"""Public base models by their configurations: enough to build them with random weights, without a download.

Only what differs from the defaults of diffusers' and transformers' classes stands here; each table names its source.
"""

from __future__ import annotations

import difflib
from typing import Any, NamedTuple

from ..layouts import VARIANTS
from .public_text_encoders import (
    CLIP_G,
    CLIP_H,
    CLIP_L,
    MISTRAL_SMALL,
    QWEN3_4B,
    QWEN3_8B,
    QWEN3_VL,
    QWEN3_VL_8B,
    QWEN_VL,
    T5_XXL,
    UMT5_XXL,
)


class PublicBase(NamedTuple):
    """A public base model."""

    hub: str
    """OWNER/NAME."""
    pipeline: str
    """diffusers' pipeline class."""
    model_config: dict[str, Any]
    """The trainable component's config, with its class as "_class_name"."""
    scheduler: dict[str, Any]
    text_encoders: dict[str, dict[str, Any]]
    """{component: the text encoder's config}."""
    vae: dict[str, Any]
    settings: dict[str, Any] = {}
    """The pipeline's own entries in its index."""


VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "sample_size": 1024,
}
VAE_16 = {**VAE, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
VAE_FLUX2 = {**VAE, "_class_name": "AutoencoderKLFlux2", "latent_channels": 32}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
QWEN_SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "base_shift": 0.5,
    "max_shift": 0.9,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
    "use_dynamic_shifting": True,
}
DYNAMIC = {**FLOW, "use_dynamic_shifting": True}
SDXL_UNET = {
    "_class_name": "UNet2DConditionModel",
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
SD21_UNET = {"attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
PNDM = {"_class_name": "PNDMScheduler", "skip_prk_steps": True}
SDXL_SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def _sd15(name: str, encoder: dict[str, Any], scheduler: dict[str, Any], side: int, **unet: Any) -> PublicBase:
    """The configuration of a public base of the family SD 1.5; side: of its latents."""
    part = {"_class_name": "UNet2DConditionModel", "cross_attention_dim": encoder["hidden_size"], "sample_size": side}
    training = {k: SDXL_SCHEDULER[k] for k in ("beta_start", "beta_end", "beta_schedule", "steps_offset")}
    vae = {**VAE, "sample_size": 8 * side}
    return PublicBase(
        VARIANTS[name].hub,
        "StableDiffusionPipeline",
        {**part, **unet},
        {**training, **scheduler},
        {"text_encoder": encoder},
        vae,
    )


def _sdxl(name: str, **scheduler: Any) -> PublicBase:
    """The configuration of SDXL or a descendant, which may be trained on another prediction target."""
    encoders = {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G}
    scheduler = {**SDXL_SCHEDULER, **scheduler}
    return PublicBase(VARIANTS[name].hub, "StableDiffusionXLPipeline", SDXL_UNET, scheduler, encoders, VAE)


def _sd3(name: str, layers: int, **changes: Any) -> PublicBase:
    """The configuration of a public base of the family SD3; heads and layers are as many, each head is 64 wide."""
    part = {"_class_name": "SD3Transformer2DModel", "num_layers": layers, "num_attention_heads": layers}
    part |= {"caption_projection_dim": 64 * layers, "pos_embed_max_size": 192, "sample_size": 128, **changes}
    encoders = {
        "text_encoder": {**CLIP_L, "architectures": ["CLIPTextModelWithProjection"]},
        "text_encoder_2": CLIP_G,
        "text_encoder_3": T5_XXL,
    }
    return PublicBase(VARIANTS[name].hub, "StableDiffusion3Pipeline", part, FLOW, encoders, VAE_16)


def _flux(name: str, distilled: bool) -> PublicBase:
    """The configuration of FLUX.1-dev, which reads a guidance, or FLUX.1-schnell, which does not."""
    part = {"_class_name": "FluxTransformer2DModel", "guidance_embeds": distilled}
    scheduler = FLOW if distilled else {**FLOW, "shift": 1.0}
    scheduler = {**scheduler, "use_dynamic_shifting": distilled}
    encoders = {"text_encoder": CLIP_L, "text_encoder_2": T5_XXL}
    return PublicBase(VARIANTS[name].hub, "FluxPipeline", part, scheduler, encoders, VAE_16)


def _qwen(name: str) -> PublicBase:
    """The configuration of Qwen-Image: all versions have one shape."""
    part, vae = {"_class_name": "QwenImageTransformer2DModel"}, {"_class_name": "AutoencoderKLQwenImage"}
    encoders = {"text_encoder": QWEN_VL}
    return PublicBase(VARIANTS[name].hub, "QwenImagePipeline", part, QWEN_SCHEDULER, encoders, vae)


def _qwen_image_21(name: str, scheduler: dict[str, Any], **settings: Any) -> PublicBase:
    """The configuration of Qwen-Image-2.1 or Turbo; the defaults of its classes are its sizes."""
    part, vae = {"_class_name": "QwenImage21Transformer2DModel"}, {"_class_name": "AutoencoderKLQwenImage21"}
    encoders = {"text_encoder": QWEN3_VL_8B}
    return PublicBase(VARIANTS[name].hub, "QwenImage21Pipeline", part, scheduler, encoders, vae, settings)


def _flux2(name: str, layers: tuple[int, int], heads: int, encoder: dict[str, Any], distilled: bool) -> PublicBase:
    """The configuration of FLUX.2 klein or its base; layers: blocks with two streams and with one."""
    part = {"_class_name": "Flux2Transformer2DModel", "num_layers": layers[0], "num_single_layers": layers[1]}
    part |= {"num_attention_heads": heads, "joint_attention_dim": 3 * encoder["hidden_size"], "guidance_embeds": False}
    encoders = {"text_encoder": {**encoder, "architectures": ["Qwen3ForCausalLM"]}}
    hub, settings = VARIANTS[name].hub, {"is_distilled": distilled}
    return PublicBase(hub, "Flux2KleinPipeline", part, DYNAMIC, encoders, VAE_FLUX2, settings)


def _z_image(name: str, shift: float) -> PublicBase:
    """Z-Image or Z-Image-Turbo, which differ in the scheduler's shift; the defaults of its class are its sizes."""
    part, scheduler = {"_class_name": "ZImageTransformer2DModel"}, {**FLOW, "shift": shift}
    return PublicBase(VARIANTS[name].hub, "ZImagePipeline", part, scheduler, {"text_encoder": QWEN3_4B}, VAE_16)


def _krea2(name: str, distilled: bool) -> PublicBase:
    """The configuration of Krea 2 Raw or Turbo; the defaults of its class are its sizes."""
    part, vae = {"_class_name": "Krea2Transformer2DModel"}, {"_class_name": "AutoencoderKLQwenImage"}
    scheduler, settings = {**DYNAMIC, "shift": 1.0, "max_image_seq_len": 6400}, {"is_distilled": distilled}
    return PublicBase(VARIANTS[name].hub, "Krea2Pipeline", part, scheduler, {"text_encoder": QWEN3_VL}, vae, settings)


WAN_VAE = {"_class_name": "AutoencoderKLWan"}
# vae/config.json of Wan2.2-TI2V-5B but for the latents' mean and deviation, which change no shape
WAN22_VAE = {
    "_class_name": "AutoencoderKLWan",
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "is_residual": True,
    "scale_factor_spatial": 16,
}


def _wan(name: str, flow_shift: float, vae: dict[str, Any], **changes: Any) -> PublicBase:
    """A base of the family Wan; its sizes where they are not Wan 2.1's of 14 B. flow_shift: as diffusers' conversion
    writes it; the authors draw videos of 720p with 5."""
    part = {"_class_name": "WanTransformer3DModel", **changes}
    scheduler = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction"}
    scheduler |= {"use_flow_sigmas": True, "flow_shift": flow_shift}
    return PublicBase(VARIANTS[name].hub, "WanPipeline", part, scheduler, {"text_encoder": UMT5_XXL}, vae)


PUBLIC: dict[str, PublicBase] = {
    "sdxl": _sdxl("sdxl"),
    "pony": _sdxl("pony"),
    "illustrious": _sdxl("illustrious"),
    "noobai-vpred": _sdxl("noobai-vpred", prediction_type="v_prediction", rescale_betas_zero_snr=True),
    "sd3-medium": _sd3("sd3-medium", 24),
    "sd3.5-medium": _sd3(
        "sd3.5-medium",
        24,
        pos_embed_max_size=384,
        dual_attention_layers=list(range(13)),
        qk_norm="rms_norm",
    ),
    "sd3.5-large": _sd3("sd3.5-large", 38, qk_norm="rms_norm"),
    "flux-dev": _flux("flux-dev", True),
    "flux-schnell": _flux("flux-schnell", False),
    "flux-krea": _flux("flux-krea", True),
    "flux-kontext": _flux("flux-kontext", True),
    "sd15": _sd15("sd15", CLIP_L, PNDM, 64),
    "sd21": _sd15(
        "sd21",
        CLIP_H,
        {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
        96,
        upcast_attention=True,
        **SD21_UNET,
    ),
    "flux2-klein-base-4b": _flux2("flux2-klein-base-4b", (5, 20), 24, QWEN3_4B, False),
    "flux2-klein-4b": _flux2("flux2-klein-4b", (5, 20), 24, QWEN3_4B, True),
    "flux2-klein-base-9b": _flux2("flux2-klein-base-9b", (8, 24), 32, QWEN3_8B, False),
    "flux2-klein-9b": _flux2("flux2-klein-9b", (8, 24), 32, QWEN3_8B, True),
    "flux2-dev": PublicBase(
        VARIANTS["flux2-dev"].hub,
        "Flux2Pipeline",
        {"_class_name": "Flux2Transformer2DModel"},
        DYNAMIC,
        {"text_encoder": MISTRAL_SMALL},
        VAE_FLUX2,
    ),
    "krea2-raw": _krea2("krea2-raw", False),
    "krea2-turbo": _krea2("krea2-turbo", True),
    "z-image": _z_image("z-image", 6.0),
    "z-image-turbo": _z_image("z-image-turbo", 3.0),
    "sd21-base": _sd15("sd21-base", CLIP_H, PNDM, 64, **SD21_UNET),
    "qwen-image": _qwen("qwen-image"),
    "qwen-image-2512": _qwen("qwen-image-2512"),
    "qwen-image-2.1": _qwen_image_21("qwen-image-2.1", QWEN_SCHEDULER),
    # As many noise levels as its index has, of even steps: none is drawn with here.
    "qwen-image-2.1-turbo": _qwen_image_21(
        "qwen-image-2.1-turbo", {**FLOW, "shift": 1.0}, sample_sigmas=[1 - k / 8 for k in range(8)]
    ),
    "wan2.1-1.3b": _wan("wan2.1-1.3b", 3.0, WAN_VAE, num_attention_heads=12, ffn_dim=8960, num_layers=30),
    "wan2.1-14b": _wan("wan2.1-14b", 3.0, WAN_VAE),
    "wan2.2-5b": _wan(
        "wan2.2-5b",
        5.0,
        WAN22_VAE,
        in_channels=48,
        out_channels=48,
        num_attention_heads=24,
        ffn_dim=14336,
        num_layers=30,
    ),
}
"""Short name -> public base model."""


def near_public_names(name: str) -> list[str]:
    """The short names of public configurations, PUBLIC, that somebody may have meant by another."""
    plain = name.lower().replace(".1", "").replace("_", "-")
    starts = [short for short in PUBLIC if plain and (short.startswith(plain) or plain.startswith(short))]
    return starts or difflib.get_close_matches(plain, PUBLIC, n=2)


def near_hubs(name: str) -> list[str]:
    """Their hub names."""
    return [PUBLIC[short].hub for short in near_public_names(name)]
