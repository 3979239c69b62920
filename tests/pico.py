"""A pico StableDiffusionXLPipeline: SDXL's real classes at less than a megabyte, with random weights.

Three-level UNet with transformers on the two lower levels as SDXL's, two CLIP text encoders of different width (the
second with a projection), two tokenizers built on the spot, a small AutoencoderKL: 16 x 16 pixels, 8 x 8 latents.
Nothing is downloaded, nothing is mocked.
"""

from __future__ import annotations

import atexit
import functools
import json
import tempfile
from pathlib import Path

import torch

SIZE = 16
"""Side of the pico base's pictures, in pixels."""

DEFAULTS = {
    "train": {"rank": 4, "steps": 6, "learning_rate": 1e-2, "batch_size": 2, "resolution": SIZE},
    "sample": {"steps": 3, "guidance": 2.0},
}

WORDS = "a dog cat face car in of style photo sketch neon <c> <s> red blue picture".split()


def tokenizer():
    """A CLIP tokenizer that knows every letter and joins the words of WORDS; 77 tokens, as CLIP's."""
    from transformers import CLIPTokenizer

    letters = sorted(set("abcdefghijklmnopqrstuvwxyz0123456789<>.,-'"))
    vocab = ["<|startoftext|>", "<|endoftext|>", *letters, *(x + "</w>" for x in letters)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        # CLIP splits at punctuation, so "<c>" arrives as "<", "c", ">"
        parts = [*word[:-1], word[-1] + "</w>"] if word.isalpha() else []
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            if pair not in merges:
                merges.append(pair)
                vocab.append("".join(pair))
            parts = ["".join(pair), *parts[2:]]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(dict.fromkeys(vocab))}, merges=merges, model_max_length=77
    )


def text_encoder(width: int, vocabulary: int, projection: int | None = None):
    """A CLIP text encoder with two layers (so that the penultimate state is not the last), of a given width."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=projection or width,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return (CLIPTextModel(config) if projection is None else CLIPTextModelWithProjection(config)).eval()


def unet(**changes):
    """SDXL's UNet: three levels, no attention on the first, linear projections, text and time conditions."""
    from diffusers import UNet2DConditionModel

    config = dict(
        sample_size=SIZE // 2,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 12, 20),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(1, 2, 4),
        cross_attention_dim=24,
        use_linear_projection=True,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 12,
    )
    return UNet2DConditionModel(**{**config, **changes}).eval()  # pyright: ignore[reportArgumentType]


def sdxl(prediction_type: str = "epsilon", **scheduler):
    """A whole pico StableDiffusionXLPipeline, the same weights at every call."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline

    words = tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=SIZE,
            scaling_factor=0.13025,
        ).eval()
        parts = dict(
            vae=vae,
            text_encoder=text_encoder(8, len(words)),
            text_encoder_2=text_encoder(16, len(words), projection=12),
            unet=unet(),
        )
    return StableDiffusionXLPipeline(
        **parts,  # pyright: ignore[reportArgumentType]
        tokenizer=words,
        tokenizer_2=tokenizer(),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type=prediction_type,
            timestep_spacing="leading",
            steps_offset=1,
            **scheduler,
        ),
    )


@functools.cache
def folder(family: str = "sdxl", **changes) -> Path:
    """A folder with the pico base of a family as save_pretrained writes it, and its defaults; made once a process."""
    holder = tempfile.TemporaryDirectory(prefix="pico-")
    atexit.register(holder.cleanup)
    path = Path(holder.name) / f"pico-{family}"
    BASES[family](**changes).save_pretrained(path)
    (path / "qrlora.json").write_text(json.dumps({"defaults": DEFAULTS}))
    return path


BASES = {"sdxl": sdxl}
"""One pico pipeline per family: a new family is tested by a line here."""
