"""FLUX.1: a transformer of blocks with two streams, image and text, and of blocks with one."""

from collections.abc import Mapping

from .layout import Layout, Reader, Variant, names_within_blocks

QKV, ADDED = "attn.to_q attn.to_k attn.to_v", "attn.add_q_proj attn.add_k_proj attn.add_v_proj"
IMAGE_ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
TEXT_ATTENTION = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")
IMAGE_FEED_FORWARD, TEXT_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2"), ("ff_context.net.0.proj", "ff_context.net.2")
EMBEDDERS = tuple(f"{input}_embedder.linear_{k}" for input in ("timestep", "text") for k in (1, 2))

DOUBLE = {
    "img_attn.qkv": QKV,
    "img_attn.proj": "attn.to_out.0",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "img_mod.lin": "norm1.linear",
    "txt_attn.qkv": ADDED,
    "txt_attn.proj": "attn.to_add_out",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
    "txt_mod.lin": "norm1_context.linear",
}
SINGLE = {"linear1": f"{QKV} proj_mlp", "linear2": "proj_out", "modulation.lin": "norm.linear"}
ENDS = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "~norm_out.linear",
}


def embedders(place: str, names: Mapping[str, str]) -> dict[str, str]:
    """Rows of `Layout.names` for what embeds time, guidance and pooled text; names: {original: diffusers' one}."""
    rows = ((theirs, ours, k, layer) for theirs, ours in names.items() for k, layer in ((1, "in"), (2, "out")))
    return {f"{theirs}_in.{layer}_layer": f"{place}.{ours}_embedder.linear_{k}" for theirs, ours, k, layer in rows}


OUTSIDE = ENDS | embedders("time_text_embed", {"time": "timestep", "vector": "text", "guidance": "guidance"})
BLOCKS = {"transformer_blocks": 19, "single_transformer_blocks": 38}
KNOWN = ("lora_unet_{original}", "diffusion_model.{original}", "transformer.{diffusers}")

DEV = "FLUX.1 [dev] Non-Commercial (images may be sold)"


def _public_flux(hub: str, architecture: str, words: tuple[str, ...], licence: str, good_for: str) -> Variant:
    """A public model of FLUX.1, as this layout's row."""
    return Variant(
        hub=f"black-forest-labs/{hub}",
        architecture=architecture,
        base_version="flux1",
        words=words,
        width=3072,
        blocks=BLOCKS,
        licence=licence,
        billions=11.9,
        card=16,
        good_for=good_for,
    )


FLUX = Layout(
    family="flux",
    component="transformer",
    variants={
        "flux-dev": _public_flux(
            "FLUX.1-dev", "flux-1-dev", ("flux1",), DEV, "photographs, hands, text; the paper's third base"
        ),
        "flux-schnell": _public_flux(
            "FLUX.1-schnell", "flux-1-schnell", ("schnell",), "Apache-2.0", "images in 4 steps"
        ),
        "flux-krea": _public_flux(
            "FLUX.1-Krea-dev", "flux-1-dev", ("flux1", "krea"), DEV, "photographs without a plastic look"
        ),
        "flux-kontext": _public_flux(
            "FLUX.1-Kontext-dev", "flux-1-dev", ("flux1", "kontext"), DEV, "made to edit; draws, too"
        ),
    },
    example="flux-dev",
    names={
        **names_within_blocks("double_blocks.#", "transformer_blocks.#", DOUBLE),
        **names_within_blocks("single_blocks.#", "single_transformer_blocks.#", SINGLE),
        **OUTSIDE,
    },
    # Table 3 of the paper, 342 layers: the eight names of attention (266, in both kinds of block) and the feed-forward
    # layers of the blocks with two streams.
    # "text-stream" and "image-stream" are ours: the layers in which a content and a style train best on the built-in
    # base (docs/findings_first_edition.md).
    targets={
        "attention-ff": IMAGE_ATTENTION + TEXT_ATTENTION + IMAGE_FEED_FORWARD + TEXT_FEED_FORWARD,
        "attention": IMAGE_ATTENTION + TEXT_ATTENTION,
        "text-stream": (*TEXT_ATTENTION, *TEXT_FEED_FORWARD, "context_embedder"),
        "image-stream": (
            *IMAGE_ATTENTION,
            *IMAGE_FEED_FORWARD,
            "proj_mlp",
            "proj_out",
            "norm1.linear",
            "norm.linear",
            *EMBEDDERS,
        ),
    },
    # kohya's names would cost three times the rank for q, k and v.
    written={"diffusers": "transformer.{diffusers}", "kohya": "lora_unet_{original}"},
    with_alpha=("kohya",),
    outputs={"proj_mlp": 4},
    tools={
        "comfyui": Reader((*KNOWN, "lora_transformer_{diffusers}", "lycoris_{diffusers}")),
        "diffusers": Reader(KNOWN, ("public sizes", "no PEFT names", "alpha or metadata", "transformer or down")),
        "forge": Reader((*KNOWN, "lora_transformer_{diffusers}", "lycoris_{diffusers}")),
        "kohya": Reader(("lora_unet_{original}",), ("alpha everywhere",)),
    },
    versions=("flux1", "flux.1", "flux-1"),
    look_alikes=("chroma", "flux2", "flux.2", "flux-2", "flux_2"),
    paper_presets=("attention-ff",),
)
