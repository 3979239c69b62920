"""The built-in base models before any training: stock classes at a few million parameters."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanImage,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from .atlas import SIZE, contents, known_contents, true_pictures
from .autoencoder import LATENT_CHANNELS, PATCH, patch_autoencoder, principal_patches
from .captions import CONTENT, STYLE, caption
from .styles import ALL_STYLES, STYLES

TEXT_LENGTH = 16
"""Tokens a prompt is padded or cut to; the world's longest caption has fewer."""
VOCABULARY = 2048

TINY_SDXL: dict[str, Any] = {
    "block_out_channels": (64, 96, 128),
    "layers_per_block": (1, 1, 2),  # two below and so three above: up_blocks.0.attentions.{0,1,2}, as in SDXL
    "attention_head_dim": (2, 3, 4),  # diffusers reads this as the number of heads
    "text_widths": (64, 96),
}
TINY_SD3: dict[str, int] = {"layers": 5, "heads": 6, "head_width": 32}
TINY_FLUX: dict[str, int] = {
    "double_layers": 2,
    "single_layers": 4,
    "heads": 6,
    "head_width": 32,
    "text_width": 128,
}


@cache
def world_patches() -> tuple[Tensor, Tensor, float]:
    """Mean, principal directions and latent deviation of every eighth known content in every known style."""
    pixels = torch.cat([true_pictures(known_contents()[::8], style) for style in STYLES])
    return principal_patches(pixels * 2 - 1)


TOKENIZER = Path(__file__).parent / "tokenizer"
"""Written by ``python -m qrlora.world.models``; whoever writes it anew must pre-train every base anew."""


def world_tokenizer() -> CLIPTokenizer:
    """The tokenizer of all built-in bases.  It is kept, because learning it twice gives two orders of equal merges."""
    return CLIPTokenizer.from_pretrained(TOKENIZER)


def learn_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer with merges learnt from the world's captions, so that most words are one token."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = sorted({word for name in contents() for word in name.split()} | set(ALL_STYLES))
    corpus = [caption(CONTENT, STYLE)] * 8 + words * 4
    learner.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY - 2, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
        ),
    )
    learnt = json.loads(learner.to_str())["model"]
    tokens = sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)
    tokens += [c + "</w>" for c in alphabet if c + "</w>" not in learnt["vocab"]]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    merges: Any = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learnt["merges"]]
    return CLIPTokenizer(vocab={t: k for k, t in enumerate(tokens)}, merges=merges, model_max_length=TEXT_LENGTH)


def text_config(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextConfig:
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


def word_tokenizer() -> T5Tokenizer:
    """A T5 tokenizer with one piece for each of the world's words, and letters for all others."""
    words = sorted({word for name in contents() for word in name.split()} | set(ALL_STYLES) | {"a", "in", "style"})
    letters = sorted(set("abcdefghijklmnopqrstuvwxyz0123456789<>.,-'"))
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in (CONTENT, STYLE, *words)), *letters]
    # a unigram tokenizer takes the likeliest split: any whole word before its letters
    vocabulary = [(piece, -1.0 if len(piece) > 1 else -10.0) for piece in pieces]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=TEXT_LENGTH)


def t5_config(vocabulary: int, width: int) -> T5Config:
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


def patches_vae(**config: Any) -> AutoencoderKLHunyuanImage:
    """The stock VAE of all built-in bases; `config`: entries that a pipeline reads from it beside its own."""
    vae = patch_autoencoder(*world_patches())
    vae.register_to_config(**config)
    return vae


def tiny_sdxl() -> StableDiffusionXLPipeline:
    """An untrained ``tiny-sdxl``: SDXL's three-level UNet, two CLIP text encoders, v-prediction from pure noise."""
    tokenizer = world_tokenizer()
    first, second = TINY_SDXL["text_widths"]
    unet = UNet2DConditionModel(
        sample_size=SIZE // PATCH,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
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
        vae=patches_vae(),  # pyright: ignore[reportArgumentType]
        text_encoder=CLIPTextModel(text_config(tokenizer, first, 2)),
        text_encoder_2=CLIPTextModelWithProjection(text_config(tokenizer, second, 3)),
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


def learnt_encoders() -> tuple[CLIPTextModelWithProjection, CLIPTextModelWithProjection]:
    """Both text encoders of the ``tiny-sdxl`` in the package, for bases that build on them: words are learnt once."""
    folder = BASES / "tiny-sdxl"
    plain = CLIPTextModel.from_pretrained(folder / "text_encoder")
    first = CLIPTextModelWithProjection(plain.config)
    first.text_model.load_state_dict(plain.state_dict())
    torch.nn.init.eye_(first.text_projection.weight)  # as in the CLIP-L that comes with SD3
    return first, CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2")


def tiny_sd3() -> StableDiffusion3Pipeline:
    """An untrained ``tiny-sd3``: SD3's joint transformer on 64 patches, ``tiny-sdxl``'s two CLIPs, T5."""
    tokenizer, pieces = world_tokenizer(), word_tokenizer()
    first, second = learnt_encoders()
    widths = first.config.hidden_size + second.config.hidden_size
    transformer = SD3Transformer2DModel(
        sample_size=SIZE // PATCH,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=TINY_SD3["layers"],
        attention_head_dim=TINY_SD3["head_width"],
        num_attention_heads=TINY_SD3["heads"],
        caption_projection_dim=TINY_SD3["heads"] * TINY_SD3["head_width"],
        joint_attention_dim=widths,
        pooled_projection_dim=widths,
        pos_embed_max_size=SIZE // PATCH // 2,
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        vae=patches_vae(shift_factor=0.0),  # pyright: ignore[reportArgumentType]
        text_encoder=first,
        text_encoder_2=second,
        text_encoder_3=T5EncoderModel(t5_config(len(pieces), widths)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=pieces,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def tiny_flux() -> FluxPipeline:
    """An untrained ``tiny-flux``: two blocks with two streams, four with one, T5; not distilled, so without guidance
    input. CLIP is ``tiny-sdxl``'s."""
    pieces = word_tokenizer()
    heads, width = TINY_FLUX["heads"], TINY_FLUX["head_width"]
    _, learnt = learnt_encoders()  # the second: its pooled state is what tiny-sdxl has learnt to use
    clip = CLIPTextModel(learnt.config)
    clip.load_state_dict(learnt.text_model.state_dict())
    transformer = FluxTransformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=TINY_FLUX["double_layers"],
        num_single_layers=TINY_FLUX["single_layers"],
        attention_head_dim=width,
        num_attention_heads=heads,
        joint_attention_dim=TINY_FLUX["text_width"],
        pooled_projection_dim=clip.config.hidden_size,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )
    return FluxPipeline(
        vae=patches_vae(shift_factor=0.0),  # pyright: ignore[reportArgumentType]
        text_encoder=clip,
        text_encoder_2=T5EncoderModel(t5_config(len(pieces), TINY_FLUX["text_width"])),
        tokenizer=world_tokenizer(),
        tokenizer_2=pieces,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


@dataclass(frozen=True)
class Blueprint:
    """How a built-in base begins."""

    build: Callable[[], Any]
    """() -> its untrained pipeline, from torch's global generator."""
    learns: tuple[str, ...]
    """Parts of the pipeline that pre-training changes."""
    times: str
    """Row of `noise.TIMES` that pre-training draws from."""


BLUEPRINTS = {
    "tiny-sdxl": Blueprint(tiny_sdxl, ("unet", "text_encoder", "text_encoder_2"), "noisy"),
    "tiny-sd3": Blueprint(tiny_sd3, ("transformer", "text_encoder_3"), "logit-normal"),
    "tiny-flux": Blueprint(tiny_flux, ("transformer", "text_encoder_2"), "logit-normal"),
}
BASES = Path(__file__).parent / "bases"
"""Where the pre-trained bases lie in the package, one folder each."""


if __name__ == "__main__":
    learn_tokenizer().save_pretrained(TOKENIZER)
