"""FLUX.2: a transformer of blocks with two streams, images and words, and of fused blocks with one."""

from .flux import ADDED, ENDS, IMAGE_ATTENTION, KNOWN, QKV, TEXT_ATTENTION, embedders
from .layout import Layout, Reader, Variant, names_within_blocks

IMAGE_FEED_FORWARD = ("ff.linear_in", "ff.linear_out")
TEXT_FEED_FORWARD = ("ff_context.linear_in", "ff_context.linear_out")
SINGLE_ATTENTION = ("attn.to_qkv_mlp_proj", "single_transformer_blocks.*.attn.to_out")
TIME = ("timestep_embedder.linear_1", "timestep_embedder.linear_2")
MODULATION = ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")

STREAMS = {
    "img": (QKV, "attn.to_out.0", *IMAGE_FEED_FORWARD),
    "txt": (ADDED, "attn.to_add_out", *TEXT_FEED_FORWARD),
}
LAYERS = ("attn.qkv", "attn.proj", "mlp.0", "mlp.2")
DOUBLE = {f"{x}_{layer}": ours for x, own in STREAMS.items() for layer, ours in zip(LAYERS, own, strict=True)}
SINGLE = {"linear1": "attn.to_qkv_mlp_proj", "linear2": "attn.to_out"}
OUTSIDE = {
    **ENDS,
    **{f"{name}.lin": f"{name}.linear" for name in MODULATION},
    **embedders("time_guidance_embed", {"time": "timestep", "guidance": "guidance"}),
}
FREE, CLOSED = "Apache-2.0", "FLUX Non-Commercial License"


def _flux2_size(name: str, width: int, double: int, single: int, licence: str, billions: float, card: int) -> Variant:
    """What all FLUX.2 models of a size have; double, single: their blocks with two streams and with one."""
    blocks, version = {"transformer_blocks": double, "single_transformer_blocks": single}, name.replace("-", "_")
    return Variant("", f"Flux.2-{name}", f"flux_2_{version}", (), width, blocks, {}, licence, billions, card)


KLEIN_4B = _flux2_size("klein-4b", 3072, 5, 20, FREE, 3.88, 12)
KLEIN_9B = _flux2_size("klein-9b", 4096, 8, 24, CLOSED, 9.08, 24)
DEV = _flux2_size("dev", 6144, 8, 48, CLOSED, 32.2, 48)


def _public_flux2(size: Variant, hub: str, good_for: str, *words: str) -> Variant:
    """A public model of FLUX.2, as this layout's row."""
    return size._replace(hub=f"black-forest-labs/FLUX.2-{hub}", good_for=good_for, words=words)


FLUX2 = Layout(
    family="flux2",
    component="transformer",
    variants={
        "flux2-klein-base-4b": _public_flux2(KLEIN_4B, "klein-base-4B", "small, to train on", "klein", "base"),
        "flux2-klein-4b": _public_flux2(KLEIN_4B, "klein-4B", "the same in 4 steps, to draw with", "klein"),
        "flux2-klein-base-9b": _public_flux2(KLEIN_9B, "klein-base-9B", "the larger one, to train on", "klein", "base"),
        "flux2-klein-9b": _public_flux2(KLEIN_9B, "klein-9B", "the same in 4 steps, to draw with", "klein"),
        "flux2-dev": _public_flux2(DEV, "dev", "the largest: long prompts, detail"),
    },
    example="flux2-klein-base-4b",
    sized_by=(".to_q", ".to_k", ".to_v", ".add_q_proj", ".add_k_proj", ".add_v_proj", ".to_qkv_mlp_proj", ".linear_in"),
    names={
        **names_within_blocks("double_blocks.#", "transformer_blocks.#", DOUBLE),
        **names_within_blocks("single_blocks.#", "single_transformer_blocks.#", SINGLE),
        **OUTSIDE,
    },
    # The public script adapts the image's attention and all of the blocks with one stream.
    targets={
        "attention": (*IMAGE_ATTENTION, *SINGLE_ATTENTION),
        "attention-ff": IMAGE_ATTENTION + TEXT_ATTENTION + IMAGE_FEED_FORWARD + TEXT_FEED_FORWARD + SINGLE_ATTENTION,
        "text-stream": (*TEXT_ATTENTION, *TEXT_FEED_FORWARD, "context_embedder"),
        "image-stream": (*IMAGE_ATTENTION, *IMAGE_FEED_FORWARD),
        "time-embedding": (*(f"{name}.linear" for name in MODULATION), *TIME),
    },
    written={"diffusers": "transformer.{diffusers}", "kohya": "lora_unet_{original}"},
    with_alpha=("kohya",),
    outputs={"to_qkv_mlp_proj": 9, "linear_in": 6},
    tools={
        "comfyui": Reader(
            (*KNOWN, "{diffusers}", "lora_transformer_{diffusers}", "lycoris_{diffusers}"), ("no modulation",)
        ),
        "diffusers": Reader(KNOWN, ("alpha beside down", "kohya's endings flat")),
        "kohya": Reader(("lora_unet_{original}",), ("alpha everywhere", "blocks alone")),
    },
    versions=("flux_2", "flux2", "flux.2", "flux-2"),
)
