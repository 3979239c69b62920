"""Stable Diffusion 3 and 3.5: a transformer on image and text tokens."""

from .layout import Layout, Reader, Variant, names_within_blocks

QKV, ADDED = "attn.to_q attn.to_k attn.to_v", "attn.add_q_proj attn.add_k_proj attn.add_v_proj"
IMAGE_ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
TEXT_ATTENTION = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")
IMAGE_ATTENTION_ALONE = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")
EMBEDDERS = tuple(f"{input}_embedder.linear_{k}" for input in ("timestep", "text") for k in (1, 2))

BLOCK = {
    "x_block.attn.qkv": QKV,
    "x_block.attn.proj": "attn.to_out.0",
    "x_block.attn2.qkv": QKV.replace("attn", "attn2"),
    "x_block.attn2.proj": "attn2.to_out.0",
    "x_block.mlp.fc1": "ff.net.0.proj",
    "x_block.mlp.fc2": "ff.net.2",
    "x_block.adaLN_modulation.1": "norm1.linear",
    "context_block.attn.qkv": ADDED,
    "context_block.attn.proj": "attn.to_add_out",
    "context_block.mlp.fc1": "ff_context.net.0.proj",
    "context_block.mlp.fc2": "ff_context.net.2",
    "context_block.adaLN_modulation.1": "~norm1_context.linear",  # the last block's has two outputs for each input
}
OUTSIDE = {
    "x_embedder.proj": "pos_embed.proj",
    "context_embedder": "context_embedder",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "~norm_out.linear",
}


def _public_sd3(
    hub: str, version: str, width: int, blocks: int, words: tuple[str, ...], billions: float, card: int, good_for: str
) -> Variant:
    """A public model of Stable Diffusion 3, as this layout's row."""
    return Variant(
        hub=f"stabilityai/{hub}",
        architecture=f"stable-diffusion-3-{version}",
        base_version=version,
        words=words,
        width=width,
        blocks={"transformer_blocks": blocks},
        licence="Stability AI Community (below 1 M$ revenue)",
        billions=billions,
        card=card,
        good_for=good_for,
    )


SD3 = Layout(
    family="sd3",
    component="transformer",
    variants={
        "sd3-medium": _public_sd3(
            "stable-diffusion-3-medium-diffusers", "medium", 1536, 24, ("3medium",), 2.03, 16, "the paper's second base"
        ),
        "sd3.5-medium": _public_sd3(
            "stable-diffusion-3.5-medium",
            "5-medium",
            1536,
            24,
            ("35medium",),
            2.24,
            16,
            "text in images, varied styles",
        ),
        "sd3.5-large": _public_sd3(
            "stable-diffusion-3.5-large", "5-large", 2432, 38, ("35large",), 8.06, 16, "detail, varied styles"
        ),
    },
    example="sd3.5-medium",
    names={**names_within_blocks("joint_blocks.#", "transformer_blocks.#", BLOCK), **OUTSIDE},
    # Table 3 of the paper: 191 layers of SD3-medium, with the last add_q_proj, which no answer depends on.
    # SD3.5-medium has a second attention in its first 13 blocks, on the image stream alone; the paper and the public
    # trainings leave it out, "attention-dual" (243 layers) takes it in.
    # "text-stream" and "image-stream" are ours: the layers in which a content and a style train best on the built-in
    # base (docs/findings_first_edition.md).
    targets={
        "attention": IMAGE_ATTENTION + TEXT_ATTENTION,
        "attention-dual": IMAGE_ATTENTION + TEXT_ATTENTION + IMAGE_ATTENTION_ALONE,
        "text-stream": (*TEXT_ATTENTION, "ff_context.net.0.proj", "ff_context.net.2", "context_embedder"),
        "image-stream": (*IMAGE_ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_out", "norm1.linear", *EMBEDDERS),
    },
    # diffusers cannot read kohya's names for SD3, ComfyUI reads both, Forge kohya's alone.
    written={"diffusers": "transformer.{diffusers}", "kohya": "lora_unet_{original}"},
    with_alpha=("kohya",),
    tools={
        "comfyui": Reader(
            ("lora_unet_{original}", "diffusion_model.{original}", "transformer.{diffusers}")
            + ("base_model.model.{diffusers}", "lora_transformer_{diffusers}", "lycoris_{diffusers}")
        ),
        "diffusers": Reader(("transformer.{diffusers}",), ("the word lora",)),
        "a1111": Reader(("lora_unet_{original}", "transformer.{diffusers}"), ("two dots",), ()),
        "forge": Reader(("lora_unet_{original}", "diffusion_model.{original}")),  # its map of others is commented out
        "kohya": Reader(("lora_unet_{original}",), ("alpha everywhere",)),
    },
    versions=("medium", "5-medium", "5-large", "sd3", "sd_3", "stable-diffusion-3"),
    paper_presets=("attention",),
)
