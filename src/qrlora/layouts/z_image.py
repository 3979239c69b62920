"""Z-Image: a transformer on one stream of image and text tokens, each refined alone before."""

from .layout import Layout, Reader, Variant, names_within_blocks

ATTENTION = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")
FEED_FORWARD = ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
BLOCK = {
    "attention.qkv": "attention.to_q attention.to_k attention.to_v",
    "attention.out": "attention.to_out.0",
    **{name: name for name in FEED_FORWARD},
}
MODULATED = {**BLOCK, "adaLN_modulation.0": "adaLN_modulation.0"}
OUTSIDE = {
    "x_embedder": "all_x_embedder.2-1",
    "final_layer.linear": "all_final_layer.2-1.linear",
    "final_layer.adaLN_modulation.1": "all_final_layer.2-1.adaLN_modulation.1",
    **{name: name for name in ("cap_embedder.1", "t_embedder.mlp.0", "t_embedder.mlp.2")},
}
BLOCKS = {"layers": 30, "noise_refiner": 2, "context_refiner": 2}


def _public_z_image(hub: str, good_for: str, *words: str) -> Variant:
    """A public model of Z-Image, as this layout's row."""
    return Variant(
        hub=f"Tongyi-MAI/{hub}",
        architecture="Z-Image",
        base_version="z_image",
        words=words,
        width=3840,
        blocks=BLOCKS,
        licence="Apache-2.0",
        billions=6.15,
        card=12,
        good_for=good_for,
    )


Z_IMAGE = Layout(
    family="z_image",
    component="transformer",
    variants={
        "z-image": _public_z_image("Z-Image", "photographs and text in images; to train on"),
        "z-image-turbo": _public_z_image(
            "Z-Image-Turbo", "the same in 8 steps; to draw with, trained on Z-Image", "turbo"
        ),
    },
    example="z-image",
    names={
        **names_within_blocks("layers.#", "layers.#", MODULATED),
        **names_within_blocks("noise_refiner.#", "noise_refiner.#", MODULATED),
        **names_within_blocks("context_refiner.#", "context_refiner.#", BLOCK),
        **OUTSIDE,
    },
    # The public script adapts the attention of all blocks, 136 layers. The streams are apart in the refiners alone.
    targets={
        "attention": ATTENTION,
        "attention-ff": ATTENTION + FEED_FORWARD,
        "text-stream": (*(f"context_refiner.*.{x}" for x in ATTENTION + FEED_FORWARD), "cap_embedder.1"),
        "image-stream": tuple(f"noise_refiner.*.{x}" for x in ATTENTION + FEED_FORWARD),
        "time-embedding": ("adaLN_modulation.0", "t_embedder.mlp.0", "t_embedder.mlp.2"),
    },
    # kohya's musubi-tuner names diffusers' layers, of which ComfyUI knows the feed-forward ones alone under its prefix.
    written={"diffusers": "transformer.{diffusers}", "kohya": "lora_unet_{diffusers}"},
    with_alpha=("kohya",),
    tools={
        "comfyui": Reader(
            ("lora_unet_{original}", "diffusion_model.{original}", "diffusion_model.{diffusers}")
            + ("transformer.{diffusers}", "lycoris_{diffusers}", "{diffusers}")
        ),
        "diffusers": Reader(
            ("transformer.{diffusers}", "diffusion_model.{diffusers}", "lora_unet_{diffusers}", "{diffusers}")
            + ("lora_unet_{original}", "diffusion_model.{original}"),
            ("alpha or transformer", "bare beside alpha", "original attention"),
        ),
        "kohya": Reader(("lora_unet_{diffusers}",), ("alpha everywhere", "blocks alone")),
    },
    versions=("z_image", "zimage", "z-image"),
    look_alikes=("lumina",),
    foreign_widths=(2304,),  # Lumina 2
)
