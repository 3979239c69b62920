"""The built-in base models before any training: stock classes at a few million parameters."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

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


def tiny_sdxl(seed: int = 0) -> StableDiffusionXLPipeline:
    """An untrained ``tiny-sdxl``: SDXL's three-level UNet, two CLIP text encoders, v-prediction from pure noise."""
    torch.manual_seed(seed)
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
        vae=patch_autoencoder(*world_patches()),  # pyright: ignore[reportArgumentType]
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


BUILDERS = {"tiny-sdxl": tiny_sdxl}
BASES = Path(__file__).parent / "bases"
"""Where the pre-trained bases lie in the package, one folder each."""


if __name__ == "__main__":
    learn_tokenizer().save_pretrained(TOKENIZER)
