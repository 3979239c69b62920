"""Qwen-Image: a transformer of 60 blocks with two streams, image and text, whose layers have one set of names."""

from .layout import Layout, Reader, Variant

IMAGE_ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
TEXT_ATTENTION = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")
IMAGE_FEED_FORWARD = ("img_mlp.net.0.proj", "img_mlp.net.2")
TEXT_FEED_FORWARD = ("txt_mlp.net.0.proj", "txt_mlp.net.2")
IN_BLOCK = (*IMAGE_ATTENTION, *TEXT_ATTENTION, *IMAGE_FEED_FORWARD, *TEXT_FEED_FORWARD, "img_mod.1", "txt_mod.1")
TIME = ("time_text_embed.timestep_embedder.linear_1", "time_text_embed.timestep_embedder.linear_2")
OUTSIDE = ("img_in", "txt_in", "proj_out", "norm_out.linear", *TIME)
KNOWN = ("lora_unet_{original}", "diffusion_model.{original}", "transformer.{diffusers}")


def _public_qwen_image(hub: str, good_for: str, *words: str) -> Variant:
    """A public model of Qwen-Image, as this layout's row."""
    return Variant(
        hub=f"Qwen/{hub}",
        architecture="Qwen-Image",
        base_version="qwen_image",
        words=words,
        width=3072,
        blocks={"transformer_blocks": 60},
        licence="Apache-2.0",
        billions=20.4,
        card=24,
        good_for=good_for,
    )


QWEN_IMAGE = Layout(
    family="qwen_image",
    component="transformer",
    variants={
        "qwen-image": _public_qwen_image("Qwen-Image", "long prompts, text in images, Chinese too", "qwenimage"),
        "qwen-image-2512": _public_qwen_image(
            "Qwen-Image-2512", "the same with finer people and textures", "qwenimage", "2512"
        ),
    },
    example="qwen-image",
    names={x: x for x in (*(f"transformer_blocks.#.{layer}" for layer in IN_BLOCK), *OUTSIDE)},
    # "attention" is the public script's; musubi-tuner takes all of a block but its modulation, "attention-ff".
    targets={
        "attention": IMAGE_ATTENTION,
        "attention-ff": IMAGE_ATTENTION + TEXT_ATTENTION + IMAGE_FEED_FORWARD + TEXT_FEED_FORWARD,
        "text-stream": (*TEXT_ATTENTION, *TEXT_FEED_FORWARD, "txt_in"),
        "image-stream": (*IMAGE_ATTENTION, *IMAGE_FEED_FORWARD, "img_mod.1", "proj_out", *TIME),
    },
    written={"diffusers": "transformer.{diffusers}", "kohya": "lora_unet_{original}"},
    with_alpha=("kohya",),  # musubi-tuner's
    tools={
        "comfyui": Reader((*KNOWN, "{diffusers}", "lycoris_{diffusers}")),
        "diffusers": Reader((*KNOWN, "{diffusers}"), ("transformer. alone",)),
        "kohya": Reader(("lora_unet_{original}",), ("alpha everywhere", "blocks alone")),
    },
    versions=("qwen_image", "qwen-image"),
    look_alikes=("qwen_image_edit", "qwen-image-edit", "qwen_image_layered", "qwen-image-layered"),
)
