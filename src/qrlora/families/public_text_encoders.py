"""Configurations of the text encoders of public bases, without the defaults of their classes."""

from typing import Any

# config.json of openai/clip-vit-large-patch14's text model, which all three families use
CLIP_L: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
# text_encoder_2/config.json of SDXL and SD3: OpenCLIP's ViT-bigG
CLIP_G: dict[str, Any] = {
    "architectures": ["CLIPTextModelWithProjection"],
    "model_type": "clip_text_model",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
# text_encoder/config.json of SD 2.1: OpenCLIP's ViT-H without its last layer
CLIP_H: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "projection_dim": 512,
    "hidden_act": "gelu",
}
# google/t5-v1_1-xxl, the encoder alone
T5_XXL: dict[str, Any] = {
    "architectures": ["T5EncoderModel"],
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
# google/umt5-xxl, the encoder alone
UMT5_XXL: dict[str, Any] = {**T5_XXL, "architectures": ["UMT5EncoderModel"], "model_type": "umt5", "vocab_size": 256384}
# text_encoder/config.json of Qwen-Image: Qwen2.5-VL-7B
QWEN_VL: dict[str, Any] = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "tie_word_embeddings": False,
    "text_config": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1000000.0},
        "max_position_embeddings": 128000,
    },
    "vision_config": {"hidden_size": 1280, "out_hidden_size": 3584, "intermediate_size": 3420},
}
# Qwen/Qwen3-4B
QWEN3_4B: dict[str, Any] = {
    "architectures": ["Qwen3Model"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}
QWEN3_8B: dict[str, Any] = {**QWEN3_4B, "hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False}
# Qwen/Qwen3-VL-4B-Instruct
QWEN3_VL: dict[str, Any] = {
    "architectures": ["Qwen3VLModel"],
    "model_type": "qwen3_vl",
    "text_config": {
        **{name: x for name, x in QWEN3_4B.items() if name not in ("architectures", "model_type")},
        "rope_parameters": {"rope_type": "default", "mrope_section": [24, 20, 20], "rope_theta": 5000000.0},
        "max_position_embeddings": 262144,
    },
    "vision_config": {"hidden_size": 1024, "intermediate_size": 4096, "depth": 24, "out_hidden_size": 2560},
}
# text_encoder/config.json of Qwen-Image-2.1: Qwen3-VL-8B
QWEN3_VL_8B: dict[str, Any] = {
    **QWEN3_VL,
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "tie_word_embeddings": False,
    "text_config": {**QWEN3_VL["text_config"], "hidden_size": 4096, "intermediate_size": 12288},
    "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "depth": 27,
        "out_hidden_size": 4096,
        "deepstack_visual_indexes": [8, 16, 24],
    },
}
# text_encoder/config.json of FLUX.2-dev: Mistral-Small-3.2-24B
MISTRAL_SMALL: dict[str, Any] = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "model_type": "mistral3",
    "text_config": {
        "model_type": "mistral",
        "vocab_size": 131072,
        "hidden_size": 5120,
        "intermediate_size": 32768,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "vision_config": {"model_type": "pixtral", "image_size": 1540, "patch_size": 14},
}
