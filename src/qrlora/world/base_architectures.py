"""The built-in bases before training: stock diffusers and transformers classes with a few million parameters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderTiny,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from ..built_in_bases import folder_of, installation_hint
from .drawings import SIZE
from .model_folders import open_vae
from .tokenizers import TEXT_LENGTH, clip_tokenizer, t5_tokenizer


@dataclass(frozen=True)
class Autoencoder:
    """Shape of a base's VAE, an `AutoencoderTiny`."""

    channels: int
    """Latent channels."""
    blocks: tuple[int, ...]
    """Residual blocks of each level, the images' own size first; each level halves the sides."""

    @property
    def reduction(self) -> int:
        """Downsampling factor: pixels a side for each latent position."""
        return 2 ** (len(self.blocks) - 1)


FLUX2_LATENTS = Autoencoder(32, (1, 1, 2, 3))
AUTOENCODERS = {
    "tiny-sdxl": Autoencoder(8, (1, 1, 3)),  # 32 x 32 latents: the UNet's lowest level, with transformers, has 8 x 8
    "tiny-sd3": FLUX2_LATENTS,
    "tiny-flux": FLUX2_LATENTS,
}

TINY_SDXL: dict[str, Any] = {
    "block_out_channels": (48, 96, 128),
    "layers_per_block": (1, 1, 2),  # two below and so three above: up_blocks.0.attentions.{0,1,2}, as in SDXL
    "attention_head_dim": (2, 3, 4),  # diffusers reads this as the number of heads
}
CLIP_SHAPES = ((64, 2), (96, 3))
"""(width, layers) of the first and the second CLIP text encoder."""
TINY_SD3: dict[str, int] = {"layers": 5, "heads": 6, "head_width": 32}
TINY_FLUX: dict[str, int] = {
    "double_layers": 2,
    "single_layers": 6,
    "heads": 6,
    "head_width": 32,
    "text_width": 128,
}


def clip_config(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextConfig:
    """The architecture of a built-in base's CLIP text encoder."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=TEXT_LENGTH,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,  # pyright: ignore[reportArgumentType]
        eos_token_id=tokenizer.eos_token_id,  # pyright: ignore[reportArgumentType]
        pad_token_id=tokenizer.pad_token_id,  # pyright: ignore[reportArgumentType]
    )


def t5_config(vocabulary: int, width: int) -> T5Config:
    """The architecture of a built-in base's T5 text encoder."""
    return T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=32,
        d_ff=2 * width,
        num_layers=2,
        num_heads=width // 32,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        use_cache=False,
    )


def load_trained_vae(base: str) -> AutoencoderTiny:
    """The base's VAE, which `vae_training` has trained before the base itself.

    Raises: OSError: it is not here.  ValueError: it is none.
    """
    folder = folder_of(base) / "vae"
    if not folder.is_dir():
        hint = f"{folder} is missing: `python -m qrlora.world.vae_training {base}` trains and writes it"
        raise FileNotFoundError(installation_hint(base) or hint)
    return open_vae(folder)


def tiny_sdxl() -> StableDiffusionXLPipeline:
    """The architecture of ``tiny-sdxl``, untrained: SDXL's three-level UNet, two CLIP text encoders, v-prediction from
    pure noise."""
    tokenizer = clip_tokenizer()
    (first, _), (second, _) = CLIP_SHAPES
    unet = UNet2DConditionModel(
        sample_size=SIZE // AUTOENCODERS["tiny-sdxl"].reduction,
        in_channels=AUTOENCODERS["tiny-sdxl"].channels,
        out_channels=AUTOENCODERS["tiny-sdxl"].channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=TINY_SDXL["block_out_channels"],
        layers_per_block=TINY_SDXL["layers_per_block"],
        attention_head_dim=TINY_SDXL["attention_head_dim"],
        transformer_layers_per_block=1,
        cross_attention_dim=first + second,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=6 * 32 + second,
        norm_num_groups=16,
    )
    return StableDiffusionXLPipeline(
        vae=load_trained_vae("tiny-sdxl"),  # pyright: ignore[reportArgumentType]
        text_encoder=CLIPTextModel(clip_config(tokenizer, *CLIP_SHAPES[0])),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(tokenizer, *CLIP_SHAPES[1])),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(  # pyright: ignore[reportArgumentType]
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
        ),
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


def sd3_clip_encoders() -> tuple[CLIPTextModelWithProjection, CLIPTextModelWithProjection]:
    """The architecture of SD3's two CLIP text encoders, untrained; the first one's projection is the identity, as in
    SD3's CLIP-L."""
    tokenizer = clip_tokenizer()
    first, second = (CLIPTextModelWithProjection(clip_config(tokenizer, *shape)) for shape in CLIP_SHAPES)
    torch.nn.init.eye_(first.text_projection.weight)
    return first, second


def tiny_sd3() -> StableDiffusion3Pipeline:
    """The architecture of ``tiny-sd3``, untrained: SD3's joint transformer on 64 patches, two CLIPs, T5."""
    tokenizer, pieces = clip_tokenizer(), t5_tokenizer()
    first, second = sd3_clip_encoders()
    widths = first.config.hidden_size + second.config.hidden_size
    transformer = SD3Transformer2DModel(
        sample_size=SIZE // FLUX2_LATENTS.reduction,
        patch_size=2,
        in_channels=FLUX2_LATENTS.channels,
        out_channels=FLUX2_LATENTS.channels,
        num_layers=TINY_SD3["layers"],
        attention_head_dim=TINY_SD3["head_width"],
        num_attention_heads=TINY_SD3["heads"],
        caption_projection_dim=TINY_SD3["heads"] * TINY_SD3["head_width"],
        joint_attention_dim=widths,
        pooled_projection_dim=widths,
        pos_embed_max_size=SIZE // FLUX2_LATENTS.reduction // 2,
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        vae=load_trained_vae("tiny-sd3"),  # pyright: ignore[reportArgumentType]
        text_encoder=first,
        text_encoder_2=second,
        text_encoder_3=T5EncoderModel(t5_config(len(pieces), widths)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=pieces,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def tiny_flux(shape: Mapping[str, int] = TINY_FLUX) -> FluxPipeline:
    """An untrained ``tiny-flux``: two blocks with two streams, six with one, T5; not distilled, so without guidance
    input. Args: shape: another width or depth, in the names of TINY_FLUX."""
    tokenizer, pieces = clip_tokenizer(), t5_tokenizer()
    heads, width = shape["heads"], shape["head_width"]
    clip = CLIPTextModel(clip_config(tokenizer, *CLIP_SHAPES[1]))
    transformer = FluxTransformer2DModel(
        in_channels=4 * FLUX2_LATENTS.channels,
        num_layers=shape["double_layers"],
        num_single_layers=shape["single_layers"],
        attention_head_dim=width,
        num_attention_heads=heads,
        joint_attention_dim=shape["text_width"],
        pooled_projection_dim=clip.config.hidden_size,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )
    return FluxPipeline(
        vae=load_trained_vae("tiny-flux"),  # pyright: ignore[reportArgumentType]
        text_encoder=clip,
        text_encoder_2=T5EncoderModel(t5_config(len(pieces), shape["text_width"])),
        tokenizer=tokenizer,
        tokenizer_2=pieces,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


Tokens = dict[str, Tensor]
"""Token ids by tokenizer, each (b, TEXT_LENGTH)."""


def clip_tokens(pipe: Any, captions: list[str]) -> Tokens:
    """Token ids for both CLIP text encoders."""
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    return {"clip": pipe.tokenizer(captions, max_length=TEXT_LENGTH, **options).input_ids}


def clip_and_t5_tokens(pipe: Any, captions: list[str]) -> Tokens:
    """Token ids for the CLIP text encoders and T5 of a built-in base."""
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    pieces = getattr(pipe, "tokenizer_3", None) or pipe.tokenizer_2
    return {**clip_tokens(pipe, captions), "t5": pieces(captions, max_length=TEXT_LENGTH, **options).input_ids}


# The stock pipelines' encode_prompt, but from tokens: a stock pipeline tokenizes every prompt twice for each encoder.
# text (b, l, d) and pooled (b, p), as the families' `encode_prompt` returns them.
def encode_sdxl(pipe: Any, tokens: Tokens) -> dict[str, Tensor]:
    """Conditioning of tiny-sdxl from tokens, with gradients."""
    first = pipe.text_encoder(tokens["clip"], output_hidden_states=True)
    second = pipe.text_encoder_2(tokens["clip"], output_hidden_states=True)
    text = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
    sizes = text.new_tensor([SIZE, SIZE, 0, 0, SIZE, SIZE]).repeat(len(text), 1)
    return {"text": text, "pooled": second[0], "time_ids": sizes}


def encode_sd3(pipe: Any, tokens: Tokens) -> dict[str, Tensor]:
    """Conditioning of tiny-sd3 from tokens, with gradients."""
    both = [e(tokens["clip"], output_hidden_states=True) for e in (pipe.text_encoder, pipe.text_encoder_2)]
    clip = torch.cat([encoded.hidden_states[-2] for encoded in both], -1)
    text = torch.cat([clip, pipe.text_encoder_3(tokens["t5"])[0]], 1)
    return {"text": text, "pooled": torch.cat([encoded[0] for encoded in both], -1)}


def encode_flux(pipe: Any, tokens: Tokens) -> dict[str, Tensor]:
    pooled = pipe.text_encoder(tokens["clip"]).pooler_output
    return {"text": pipe.text_encoder_2(tokens["t5"])[0], "pooled": pooled}


@dataclass(frozen=True)
class BaseArchitecture:
    """A built-in base's untrained pipeline, and how captions are tokenized and encoded in pre-training."""

    build: Callable[[], Any]
    """() -> the untrained pipeline, initialised from torch's global generator."""
    trained_components: tuple[str, ...]
    """Components of the pipeline that pre-training trains."""
    timestep_sampling: str
    """Row of `noising.TIMESTEP_SAMPLING` that pre-training samples timesteps from."""
    tokenize: Callable[[Any, list[str]], Tokens]
    """(pipe, b captions) -> their token ids."""
    encode: Callable[[Any, Tokens], dict[str, Tensor]]
    """(pipe, token ids on its device) -> the conditioning tensors that its family's `predict` takes."""


ENCODERS = ("text_encoder", "text_encoder_2")
ARCHITECTURES = {
    "tiny-sdxl": BaseArchitecture(tiny_sdxl, ("unet", *ENCODERS), "noisy", clip_tokens, encode_sdxl),
    "tiny-sd3": BaseArchitecture(
        tiny_sd3, ("transformer", *ENCODERS, "text_encoder_3"), "logit-normal", clip_and_t5_tokens, encode_sd3
    ),
    "tiny-flux": BaseArchitecture(
        tiny_flux, ("transformer", *ENCODERS), "logit-normal", clip_and_t5_tokens, encode_flux
    ),
}
