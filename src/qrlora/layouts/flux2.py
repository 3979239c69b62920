"""FLUX.2: a transformer of blocks with two streams, images and words, and of fused blocks with one."""

from .flux import ADDED, IMAGE_ATTENTION, QKV, TEXT_ATTENTION
from .layout import Layout, Reader, Variant, names_within_blocks

IMAGE_FEED_FORWARD = ("ff.linear_in", "ff.linear_out")
TEXT_FEED_FORWARD = ("ff_context.linear_in", "ff_context.linear_out")
SINGLE_ATTENTION = ("attn.to_qkv_mlp_proj", "single_transformer_blocks.*.attn.to_out")
MODULATION = ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")

DOUBLE = {
    "img_attn.qkv": QKV,
    "img_attn.proj": "attn.to_out.0",
    "img_mlp.0": "ff.linear_in",
    "img_mlp.2": "ff.linear_out",
    "txt_attn.qkv": ADDED,
    "txt_attn.proj": "attn.to_add_out",
    "txt_mlp.0": "ff_context.linear_in",
    "txt_mlp.2": "ff_context.linear_out",
}
OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "~norm_out.linear",
    **{f"{name}.lin": f"{name}.linear" for name in MODULATION},
    **{
        f"{theirs}_in.{layer}_layer": f"time_guidance_embed.{ours}_embedder.linear_{k}"
        for theirs, ours in {"time": "timestep", "guidance": "guidance"}.items()
        for k, layer in enumerate(("in", "out"), 1)
    },
}


FREE, CLOSED = "Apache-2.0", "FLUX Non-Commercial License"
KLEIN_4B = ("flux_2_klein_4b", "Flux.2-klein-4b", 3072, 5, 20, FREE, 3.88, 12)
KLEIN_9B = ("flux_2_klein_9b", "Flux.2-klein-9b", 4096, 8, 24, CLOSED, 9.08, 24)
DEV = ("flux_2_dev", "Flux.2-dev", 6144, 8, 48, CLOSED, 32.2, 48)


def _public_flux2(hub: str, good_for: str, words: tuple[str, ...], size: tuple) -> Variant:
    """A public model of FLUX.2, as this layout's row. size: kohya's name, ModelSpec's, width, blocks with two streams
    and with one, licence, parameters, card."""
    version, architecture, width, double, single, licence, billions, card = size
    return Variant(
        hub=f"black-forest-labs/FLUX.2-{hub}",
        architecture=architecture,
        base_version=version,
        words=words,
        width=width,
        blocks={"transformer_blocks": double, "single_transformer_blocks": single},
        licence=licence,
        billions=billions,
        card=card,
        good_for=good_for,
    )


FLUX2 = Layout(
    family="flux2",
    component="transformer",
    variants={
        "flux2-klein-base-4b": _public_flux2("klein-base-4B", "small, to train on", ("klein", "base"), KLEIN_4B),
        "flux2-klein-4b": _public_flux2("klein-4B", "the same in 4 steps, to draw with", ("klein",), KLEIN_4B),
        "flux2-klein-base-9b": _public_flux2(
            "klein-base-9B", "the larger one, to train on", ("klein", "base"), KLEIN_9B
        ),
        "flux2-klein-9b": _public_flux2("klein-9B", "the same in 4 steps, to draw with", ("klein",), KLEIN_9B),
        "flux2-dev": _public_flux2("dev", "the largest: long prompts, detail", (), DEV),
    },
    example="flux2-klein-base-4b",
    sized_by=(".to_q", ".to_k", ".to_v", ".add_q_proj", ".add_k_proj", ".add_v_proj", ".to_qkv_mlp_proj", ".linear_in"),
    names={
        **names_within_blocks("double_blocks.#", "transformer_blocks.#", DOUBLE),
        **names_within_blocks(
            "single_blocks.#",
            "single_transformer_blocks.#",
            {"linear1": "attn.to_qkv_mlp_proj", "linear2": "attn.to_out"},
        ),
        **OUTSIDE,
    },
    # The public script adapts the image's attention and all of the blocks with one stream.
    targets={
        "attention": (*IMAGE_ATTENTION, *SINGLE_ATTENTION),
        "attention-ff": IMAGE_ATTENTION + TEXT_ATTENTION + IMAGE_FEED_FORWARD + TEXT_FEED_FORWARD + SINGLE_ATTENTION,
        "text-stream": (*TEXT_ATTENTION, *TEXT_FEED_FORWARD, "context_embedder"),
        "image-stream": (*IMAGE_ATTENTION, *IMAGE_FEED_FORWARD),
        "time-embedding": (
            *(f"{name}.linear" for name in MODULATION),
            "timestep_embedder.linear_1",
            "timestep_embedder.linear_2",
        ),
    },
    written={"diffusers": "transformer.{diffusers}", "kohya": "lora_unet_{original}"},
    with_alpha=("kohya",),
    outputs={"to_qkv_mlp_proj": 9, "linear_in": 6},
    tools={
        "comfyui": Reader(
            ("lora_unet_{original}", "diffusion_model.{original}", "transformer.{diffusers}", "{diffusers}")
            + ("lora_transformer_{diffusers}", "lycoris_{diffusers}"),
            ("no modulation",),
        ),
        "diffusers": Reader(
            ("lora_unet_{original}", "diffusion_model.{original}", "transformer.{diffusers}"),
            ("alpha beside down", "kohya's endings flat"),
        ),
        "kohya": Reader(("lora_unet_{original}",), ("alpha everywhere", "blocks alone")),
    },
    versions=("flux_2", "flux2", "flux.2", "flux-2"),
)
