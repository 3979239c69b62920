"""Pico pipelines of every family: the real classes at less than two megabytes each, with random weights.

SDXL: a three-level UNet with transformers on the two lower levels. SD3: a joint transformer as SD3.5-medium's, with a
second attention in its first block. FLUX: a block with two streams, one with a single stream, a guidance embedding as
FLUX.1-dev's. CLIP text encoders of different widths, T5, tokenizers built on the spot, a small AutoencoderKL: 16 x 16
pixels, 8 x 8 latents. Nothing is downloaded, nothing is mocked.
"""

from __future__ import annotations

import atexit
import functools
import json
import tempfile
from pathlib import Path

import torch

from qrlora.families.family import TokenLimits
from qrlora.families.text_processor import text_processor_class

SIZE = 16
"""Side of a pico base's pictures, in pixels."""
SIZES = {"qwen_image_21": 32}
"""Those of bases whose latents have 16 pixels each, whatever their VAE: family -> side, in pixels."""

DEFAULTS = {
    "train": {
        "rank": 4,
        "steps": 6,
        "learning_rate": 1e-2,
        "batch_size": 2,
        "resolution": SIZE,
        "qr-contrast": {"learning_rate": 3e-2},  # along directions of little energy
    },
    "sample": {"steps": 3, "guidance": 2.0},
}

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""Qwen3's chat template, for one turn."""

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


def vae(**changes):
    """An AutoencoderKL that halves the sides and has 4 latent channels."""
    from diffusers import AutoencoderKL

    config = dict(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIZE,
    )
    return AutoencoderKL(**{**config, **changes}).eval()  # pyright: ignore[reportArgumentType]


def t5_tokenizer():
    """A T5 tokenizer that knows the words of WORDS and every letter; 512 tokens, as SD3's and FLUX's."""
    from transformers import T5TokenizerFast

    letters = sorted(set("abcdefghijklmnopqrstuvwxyz0123456789<>.,-'"))
    pieces = ["<pad>", "</s>", "<unk>", "▁", *letters, *("▁" + word for word in WORDS)]
    return T5TokenizerFast(vocab=[(x, -float(k)) for k, x in enumerate(pieces)], extra_ids=0, model_max_length=512)


def t5(width: int, vocabulary: int):
    """A T5 encoder with two layers, of a given width."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=width,
            d_kv=4,
            d_ff=2 * width,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            use_cache=False,
        )
    ).eval()


def qwen_tokenizer():
    """Qwen's tokenizer over single bytes, with its chat template; of the real length."""
    from transformers import Qwen2Tokenizer

    printable = [x for x in range(256) if 33 <= x <= 126 or 161 <= x <= 172 or x >= 174]  # as GPT-2 writes bytes
    hidden = [chr(256 + k) for k in range(256 - len(printable))]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    vocab = {token: k for k, token in enumerate([*map(chr, printable), *hidden, *special])}
    made = Qwen2Tokenizer(vocab=vocab, merges=[], model_max_length=131072, extra_special_tokens=special[1:3])
    made.chat_template = TEMPLATE
    return made


def qwen3(width: int, vocabulary: int, layers: int = 2, kind: str = "Qwen3Model"):
    """A Qwen3 with grouped heads, of a given width."""
    import transformers

    config = transformers.Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return getattr(transformers, kind)(config).eval()


HEARD = (
    "condition_embedder",
    "context_embedder",
    "txt_in",
    "time_text_embed",
    "time_guidance_embed",
    "time_embed",
    "cap_embedder",
    "t_embedder",
)


def listening(transformer) -> None:
    """Untrained transformers hardly hear words, time and guidance; four times louder, pictures depend on them."""
    for name, parameter in transformer.named_parameters():
        if name.startswith(HEARD):
            parameter.data *= 4


def sdxl(prediction_type: str = "epsilon", **scheduler):
    """A whole pico StableDiffusionXLPipeline, the same weights at every call."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    words = tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = dict(
            vae=vae(scaling_factor=0.13025),
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


def sd15(version: int = 1, prediction_type: str = "epsilon", layers: int = 1, **scheduler):
    """A whole pico StableDiffusionPipeline, the same weights at every call: as 1.5's, or as version 2's.

    Its VAE keeps the sides: of 8 x 8 latents the UNet's middle would see one place, in which attention does nothing.
    """
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    words, width = tokenizer(), {1: 12, 2: 16}[version]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = dict(
            vae=vae(
                scaling_factor=0.18215,
                block_out_channels=(8,),
                down_block_types=("DownEncoderBlock2D",),
                up_block_types=("UpDecoderBlock2D",),
            ),
            text_encoder=text_encoder(width, len(words)),
            unet=unet(
                sample_size=SIZE,
                block_out_channels=(8, 12, 16, 16),
                down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
                up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
                layers_per_block=layers,
                transformer_layers_per_block=1,
                attention_head_dim={1: 2, 2: (1, 2, 4, 4)}[version],
                cross_attention_dim=width,
                use_linear_projection=version == 2,
                addition_embed_type=None,
                projection_class_embeddings_input_dim=None,
            ),
        )
    return StableDiffusionPipeline(
        **parts,  # pyright: ignore[reportArgumentType]
        tokenizer=words,
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type=prediction_type,
            skip_prk_steps=True,
            steps_offset=1,
            **scheduler,
        ),
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )


def sd3(with_t5: bool = True):
    """A whole pico StableDiffusion3Pipeline, the same weights at every call."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    words, pieces = tokenizer(), t5_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = dict(
            vae=vae(scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
            text_encoder=text_encoder(8, len(words), projection=8),
            text_encoder_2=text_encoder(16, len(words), projection=12),
            transformer=SD3Transformer2DModel(
                sample_size=SIZE // 2,
                in_channels=4,
                out_channels=4,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=2,
                joint_attention_dim=32,
                caption_projection_dim=16,
                pooled_projection_dim=8 + 12,
                pos_embed_max_size=16,
                dual_attention_layers=(0,),
                qk_norm="rms_norm",
            ).eval(),
            text_encoder_3=t5(32, len(pieces)) if with_t5 else None,
        )
        parts["text_encoder"].text_projection.weight.data = torch.eye(8)  # as the real one's
        listening(parts["transformer"])
    return StableDiffusion3Pipeline(
        **parts,  # pyright: ignore[reportArgumentType]
        tokenizer=words,
        tokenizer_2=tokenizer(),
        tokenizer_3=pieces if with_t5 else None,  # pyright: ignore[reportArgumentType]
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def flux(guidance_embeds: bool = True):
    """A whole pico FluxPipeline, the same weights at every call: as FLUX.1-dev, or as FLUX.1-schnell."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    words, pieces = tokenizer(), t5_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = dict(
            vae=vae(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
            text_encoder=text_encoder(8, len(words)),
            text_encoder_2=t5(16, len(pieces)),
            transformer=FluxTransformer2DModel(
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=8,
                num_attention_heads=2,
                joint_attention_dim=16,
                pooled_projection_dim=8,
                guidance_embeds=guidance_embeds,
                axes_dims_rope=(2, 2, 4),
            ).eval(),
        )
        listening(parts["transformer"])
    return FluxPipeline(
        **parts,  # pyright: ignore[reportArgumentType]
        tokenizer=words,
        tokenizer_2=pieces,
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0 if guidance_embeds else 1.0, use_dynamic_shifting=guidance_embeds
        ),
    )


QWEN_IMAGE_TEMPLATE = (
    "system user assistant Describe the image by detailing the color shape size texture quantity text spatial "
)
QWEN_IMAGE_TEMPLATE += "relationships of the objects and background"


def qwen_image_tokenizer(template: str = QWEN_IMAGE_TEMPLATE):
    """A Qwen2 tokenizer that joins the words of WORDS and of a pipeline's template: Qwen-Image's has its 34 tokens."""
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocab, merges = [*bytes_to_unicode().values()], {}
    for word in [x for name in [*WORDS, *template.split()] if name.isalpha() for x in (name, "\u0120" + name)]:
        parts = [*word]
        while len(parts) > 1:
            pairs = [x for x in zip(parts, parts[1:], strict=False) if x in merges]
            pair = min(pairs, key=lambda x: merges[x], default=(parts[0], parts[1]))
            merges.setdefault(pair, len(merges))
            at = next(k for k in range(len(parts)) if (*parts[k : k + 2],) == pair)
            parts[at : at + 2] = ["".join(pair)]
            vocab.append(parts[at])
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>"]
    vocab = {token: k for k, token in enumerate(dict.fromkeys([*vocab, *special]))}
    return Qwen2Tokenizer(vocab=vocab, merges=[*merges], extra_special_tokens=special[1:], model_max_length=1024)


def qwen_vl(width: int, vocabulary: int):
    """A Qwen2.5-VL with two layers, of a given width; its eyes are as small as they can be."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = dict(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    eyes = dict(depth=1, hidden_size=8, num_heads=2, intermediate_size=8, out_hidden_size=width, patch_size=2)
    config = Qwen2_5_VLConfig(text_config=text, vision_config=eyes)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def frame_vae(kind: str = "AutoencoderKLQwenImage", **changes):
    """A VAE of videos that halves the sides and has 4 latent channels, with a mean and a deviation of each."""
    import diffusers

    config = dict(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.8, 1.0, 2.0],
    )
    return getattr(diffusers, kind)(**{**config, **changes}).eval()


def qwen_image():
    """A whole pico QwenImagePipeline, the same weights at every call."""
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline, QwenImageTransformer2DModel

    words = qwen_image_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = dict(
            vae=frame_vae(),
            text_encoder=qwen_vl(16, len(words)),
            transformer=QwenImageTransformer2DModel(
                in_channels=16,
                out_channels=4,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=2,
                joint_attention_dim=16,
                axes_dims_rope=(2, 2, 4),
            ).eval(),
        )
        listening(parts["transformer"])
    return QwenImagePipeline(
        **parts,  # pyright: ignore[reportArgumentType]
        tokenizer=words,
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=1.0,
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=0.9,
            max_image_seq_len=8192,
            shift_terminal=0.02,
        ),
    )


def z_image(shift: float = 6.0):
    """A whole pico ZImagePipeline, the same weights at every call: as Z-Image, or as Z-Image-Turbo (shift 3)."""
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

    words = qwen_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = dict(
            vae=vae(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
            text_encoder=qwen3(16, len(words)),
            transformer=ZImageTransformer2DModel(
                in_channels=4,
                dim=24,
                n_layers=1,
                n_refiner_layers=1,
                n_heads=2,
                n_kv_heads=2,
                cap_feat_dim=16,
                axes_dims=[4, 4, 4],
                axes_lens=[1024, 16, 16],
            ).eval(),
        )
        listening(parts["transformer"])
    return ZImagePipeline(
        **parts,  # pyright: ignore[reportArgumentType]
        tokenizer=words,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
    )


def flux2(distilled: bool = False, guidance_embeds: bool = False):
    """A whole pico Flux2KleinPipeline, the same weights at every call: as FLUX.2-klein's base, or as klein."""
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )

    words = qwen_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = dict(
            vae=AutoencoderKLFlux2(
                block_out_channels=(8, 8),
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                latent_channels=4,
                norm_num_groups=4,
                sample_size=SIZE,
            ).eval(),
            text_encoder=qwen3(16, len(words), 27, "Qwen3ForCausalLM"),  # states 9, 18 and 27 are read
            transformer=Flux2Transformer2DModel(
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=8,
                num_attention_heads=2,
                joint_attention_dim=3 * 16,
                guidance_embeds=guidance_embeds,
                axes_dims_rope=(2, 2, 2, 2),
            ).eval(),
        )
        parts["vae"].bn.running_mean.normal_()
        parts["vae"].bn.running_var.uniform_(0.5, 2)
        listening(parts["transformer"])
    return Flux2KleinPipeline(
        **parts,  # pyright: ignore[reportArgumentType]
        tokenizer=words,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        is_distilled=distilled,
    )


def qwen3_vl(width: int, vocabulary: int, kind: str = "Qwen3VLModel"):
    """A Qwen3-VL with two layers, of a given width; its eyes are as small as they can be."""
    import transformers

    text = dict(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        rope_parameters={"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e6},
        use_cache=False,
    )
    eyes = dict(depth=1, hidden_size=8, num_heads=2, intermediate_size=8, out_hidden_size=width, patch_size=2)
    eyes |= dict(deepstack_visual_indexes=[0], num_position_embeddings=4)
    return getattr(transformers, kind)(transformers.Qwen3VLConfig(text_config=text, vision_config=eyes)).eval()


def krea2(distilled: bool = False):
    """A whole pico Krea2Pipeline, the same weights at every call: as Krea-2-Raw, or as Turbo."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Pipeline, Krea2Transformer2DModel

    words = qwen_image_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = dict(
            vae=frame_vae(),
            text_encoder=qwen3_vl(16, len(words)),
            transformer=Krea2Transformer2DModel(
                in_channels=16,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=2,
                num_key_value_heads=1,
                intermediate_size=32,
                timestep_embed_dim=16,
                text_hidden_dim=16,
                num_text_layers=2,
                text_num_attention_heads=2,
                text_num_key_value_heads=2,
                text_intermediate_size=32,
                num_layerwise_text_blocks=1,
                num_refiner_text_blocks=1,
                axes_dims_rope=(4, 2, 2),
            ).eval(),
        )
        for name, x in parts["transformer"].named_parameters():
            if name.endswith("scale_shift_table"):  # the class begins with zeros
                x.data.normal_()
        listening(parts["transformer"])
    return Krea2Pipeline(
        **parts,  # pyright: ignore[reportArgumentType]
        tokenizer=words,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=True, max_image_seq_len=6400),
        text_encoder_select_layers=(1, 2),
        is_distilled=distilled,
    )


def words_of_qwen3_vl(words):
    """A processor of words alone, in a folder by the name of Qwen-Image-2.1's own, which needs torchvision."""
    kind = type("Qwen3VLProcessor", (text_processor_class(),), {"__module__": "transformers"})
    turn = "{{ message.role }}\n{% for x in message.content %}{{ x.text }}{% endfor %}<|im_end|>\n"
    template = f"{{% for message in messages %}}<|im_start|>{turn}{{% endfor %}}"
    return kind(words, chat_template=template)


def qwen_image_21():
    """A whole pico QwenImage21Pipeline, the same weights at every call. Its pictures have 32 x 32 pixels, its VAE
    reads and makes four channels."""
    from diffusers import (
        AutoencoderKLQwenImage21,
        FlowMatchEulerDiscreteScheduler,
        QwenImage21Pipeline,
        QwenImage21Transformer2DModel,
    )

    words = qwen_image_tokenizer("system user assistant Comprehend and analyze the provided prompt")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = dict(
            vae=AutoencoderKLQwenImage21(
                base_dim=4,
                decoder_base_dim=4,
                z_dim=4,
                dim_mult=[1] * 5,
                num_res_blocks=1,
                temperal_downsample=[False] * 4,
                latents_mean=[0.1, -0.2, 0.3, 0.0],
                latents_std=[1.5, 0.8, 1.0, 2.0],
            ).eval(),
            text_encoder=qwen3_vl(16, len(words), "Qwen3VLForConditionalGeneration"),
            transformer=QwenImage21Transformer2DModel(
                in_channels=4,
                out_channels=4,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=2,
                context_in_dim=16,
                axes_dims_rope=(2, 2, 4),
            ).eval(),
        )
        listening(parts["transformer"])
    return QwenImage21Pipeline(
        **parts,  # pyright: ignore[reportArgumentType]
        processor=words_of_qwen3_vl(words),  # pyright: ignore[reportArgumentType]
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=1.0,
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=0.9,
            max_image_seq_len=8192,
            shift_terminal=0.02,
        ),
    )


def umt5(width: int, vocabulary: int):
    """A UMT5 encoder with two layers, of a given width."""
    from transformers import UMT5Config, UMT5EncoderModel

    shape = dict(d_model=width, d_kv=4, d_ff=2 * width, num_layers=2, num_heads=2)
    return UMT5EncoderModel(
        UMT5Config(vocab_size=vocabulary, feed_forward_proj="gated-gelu", use_cache=False, **shape)  # pyright: ignore
    ).eval()


def wan(expand_timesteps: bool = False):
    """A whole pico WanPipeline, the same weights at every call: as 2.1, or as 2.2-TI2V, with a time for each patch. Two
    frames are one of the latents."""
    from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

    pieces = t5_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = dict(
            vae=frame_vae(
                "AutoencoderKLWan", temperal_downsample=[True], scale_factor_spatial=2, scale_factor_temporal=2
            ),
            text_encoder=umt5(16, len(pieces)),
            transformer=WanTransformer3DModel(
                num_attention_heads=2,
                attention_head_dim=12,
                in_channels=4,
                out_channels=4,
                text_dim=16,
                freq_dim=16,
                ffn_dim=32,
                num_layers=2,
            ).eval(),
        )
        listening(parts["transformer"])
    return WanPipeline(
        **parts,  # pyright: ignore[reportArgumentType]
        tokenizer=pieces,
        scheduler=UniPCMultistepScheduler(  # pyright: ignore[reportArgumentType]
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        expand_timesteps=expand_timesteps,
    )


def kept_in_float32(model, name: str) -> bool:
    """Whether diffusers keeps a module in float32, by a word of its name."""
    return bool({*(model._keep_in_fp32_modules or ())} & {*name.split(".")})


def side_of(family: str) -> int:
    """Side of the pictures of a family's pico base, in pixels."""
    return SIZES.get(family, SIZE)


def latents(base, rows: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Random latents (b, c, h, w) of so many images of a pico base, whose VAE may keep the sides."""
    side = side_of(base.family.name) // base.pixels_per_latent
    shape = base.family.input_shapes(base.pipe, side, TokenLimits())["latents"]
    return torch.randn(rows, *shape[1:], generator=generator)


@functools.cache
def folder(family: str = "sdxl", **changes) -> Path:
    """A folder with the pico base of a family as save_pretrained writes it, and its defaults; made once a process."""
    holder = tempfile.TemporaryDirectory(prefix="pico-")
    atexit.register(holder.cleanup)
    path = Path(holder.name) / f"pico-{family}"
    BASES[family](**changes).save_pretrained(path)
    defaults = {**DEFAULTS, "train": {**DEFAULTS["train"], "resolution": side_of(family)}}
    (path / "qrlora.json").write_text(json.dumps({"defaults": defaults}))
    return path


BASES = {
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "sd15": sd15,
    "qwen_image": qwen_image,
    "z_image": z_image,
    "flux2": flux2,
    "krea2": krea2,
    "wan": wan,
    "qwen_image_21": qwen_image_21,
}
"""One pico pipeline per family: a new family is tested by a line here."""


def in_turn(*dimensions):
    """Tuples in which each value of each dimension comes at least once, and not all their product: where what one
    value does and what another does meet in one place of the code, the product shows no more and takes long."""
    values = [list(dimension) for dimension in dimensions]
    longest = max(map(len, values))
    return [tuple(column[k % len(column)] for column in values) for k in range(longest)]
