"""Wan 2.1 and 2.2-TI2V: a transformer on videos with self-attention and, to the text, cross-attention."""

from .layout import Layout, Reader, Variant, names_within_blocks

SELF = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")
CROSS = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")
FEED_FORWARD = ("ffn.net.0.proj", "ffn.net.2")
EMBEDDERS = {"time_embedding": "time_embedder", "text_embedding": "text_embedder"}
BLOCK = {
    **{f"self_attn.{x}": layer for x, layer in zip("qkvo", SELF, strict=True)},
    **{f"cross_attn.{x}": layer for x, layer in zip("qkvo", CROSS, strict=True)},
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
OUTSIDE = {
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    **{
        f"{theirs}.{place}": f"condition_embedder.{ours}.linear_{k}"
        for theirs, ours in EMBEDDERS.items()
        for k, place in enumerate((0, 2), 1)
    },
}


def _public_wan(hub: str, word: str, width: int, blocks: int, billions: float, card: int, good_for: str) -> Variant:
    """A public model of Wan, as this layout's row."""
    return Variant(
        hub=f"Wan-AI/{hub}-Diffusers",
        architecture="wan2.1",  # musubi-tuner's word for all of them
        base_version="wan",
        words=(word,),
        width=width,
        blocks={"blocks": blocks},
        licence="Apache-2.0",
        billions=billions,
        card=card,
        good_for=good_for,
    )


WAN = Layout(
    family="wan",
    component="transformer",
    variants={
        "wan2.1-1.3b": _public_wan(
            "Wan2.1-T2V-1.3B", "t2v13b", 1536, 30, 1.42, 16, "images and short videos on small cards"
        ),
        "wan2.1-14b": _public_wan("Wan2.1-T2V-14B", "t2v14b", 5120, 40, 14.29, 16, "images and videos in detail"),
        "wan2.2-5b": _public_wan("Wan2.2-TI2V-5B", "ti2v5b", 3072, 30, 5.0, 16, "videos of 720p; coarse latents"),
    },
    example="wan2.1-1.3b",
    sized_by=("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    names={**names_within_blocks("blocks.#", "blocks.#", BLOCK), **OUTSIDE},
    targets={
        "attention": SELF + CROSS,
        "attention-ff": SELF + CROSS + FEED_FORWARD,
        "text-stream": ("attn2.to_k", "attn2.to_v"),
        "image-stream": SELF + FEED_FORWARD,
    },
    # diffusers refuses files without a layer of a block, so that there is no preset of the time's layers.
    # ComfyUI knows the original names alone, and diffusers reads those, too.
    written={
        "original": "diffusion_model.{original}",
        "kohya": "lora_unet_{original}",
        "diffusers": "transformer.{diffusers}",
    },
    with_alpha=("kohya",),  # musubi-tuner's
    tools={
        "comfyui": Reader(("lora_unet_{original}", "diffusion_model.{original}")),
        "diffusers": Reader(
            ("lora_unet_{original}", "diffusion_model.{original}", "transformer.{diffusers}"), ("one tool's names",)
        ),
        "kohya": Reader(("lora_unet_{original}",), ("alpha everywhere", "blocks alone")),
    },
    versions=("wan",),
)
