"""Qwen-Image-2.1: a transformer of 32 blocks on one stream of words and image, whose layers have one set of names."""

from .layout import Layout, Reader, Variant

ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
FEED_FORWARD = ("img_mlp.proj", "img_mlp.out", "img_mlp.gate_layer")
TEXT = ("txt_in.in_layer", "txt_in.out_layer")
TIME = ("time_text_embed.timestep_embedder.linear_1", "time_text_embed.timestep_embedder.linear_2")
OUTSIDE = (*TEXT, *TIME, "img_in", "proj_out", "norm_out.linear", "modulation.1")


def _public_qwen_image_21(hub: str, good_for: str, *words: str) -> Variant:
    """A public model of Qwen-Image-2.1, as this layout's row."""
    return Variant(
        hub=f"Qwen/{hub}",
        architecture="Qwen-Image-2.1",
        base_version="qwen_image_21",
        words=words,
        width=4096,
        blocks={"transformer_blocks": 32},
        licence="Qwen Research (no commercial use)",
        billions=7.1,
        card=24,
        good_for=good_for,
    )


QWEN_IMAGE_21 = Layout(
    family="qwen_image_21",
    component="transformer",
    variants={
        "qwen-image-2.1": _public_qwen_image_21("Qwen-Image-2.1", "large images and long prompts, a third of 1.x"),
        "qwen-image-2.1-turbo": _public_qwen_image_21(
            "Qwen-Image-2.1-Turbo", "the same in few steps; to draw with, trained on 2.1", "turbo"
        ),
    },
    example="qwen-image-2.1",
    names={x: x for x in (*(f"transformer_blocks.#.{layer}" for layer in (*ATTENTION, *FEED_FORWARD)), *OUTSIDE)},
    # There is no public script of diffusers'; "attention" is the default of its loaders and of its other scripts.
    targets={
        "attention": ATTENTION,
        "attention-ff": ATTENTION + FEED_FORWARD,
        "text-stream": TEXT,
        "time-embedding": TIME,
    },
    written={"diffusers": "transformer.{diffusers}", "kohya": "lora_unet_{original}"},
    tools={
        "comfyui": Reader(
            ("lora_unet_{original}", "diffusion_model.{original}", "transformer.{diffusers}", "{diffusers}")
        ),
        "diffusers": Reader(
            ("lora_unet_{original}", "diffusion_model.{original}", "transformer.{diffusers}", "{diffusers}"),
            ("transformer. alone", "no flat names of gates"),
        ),
    },
    versions=("qwen_image_21", "qwen-image-2.1", "qwen_image_2.1", "qwen_image_2_1"),
)
