"""Krea 2: a transformer on one stream of words and image, after a small one that fuses the words."""

from .layout import Layout, Reader, Variant, names_within_blocks

ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.to_gate")
FEED_FORWARD = ("ff.gate", "ff.up", "ff.down")
BLOCK = {
    "attn.wq": "attn.to_q",
    "attn.wk": "attn.to_k",
    "attn.wv": "attn.to_v",
    "attn.wo": "attn.to_out.0",
    "attn.gate": "attn.to_gate",
    "mlp.gate": "ff.gate",
    "mlp.up": "ff.up",
    "mlp.down": "ff.down",
}
TIME = ("time_embed.linear_1", "time_embed.linear_2", "time_mod_proj")
TEXT = ("txt_in.linear_1", "txt_in.linear_2")
OUTSIDE = {
    "first": "img_in",
    "last.linear": "final_layer.linear",
    "tmlp.0": "time_embed.linear_1",
    "tmlp.2": "time_embed.linear_2",
    "tproj.1": "time_mod_proj",
    "txtmlp.1": "txt_in.linear_1",
    "txtmlp.3": "txt_in.linear_2",
    "txtfusion.projector": "text_fusion.projector",
}
BLOCKS = {"transformer_blocks": 28}


def _public_krea2(hub: str, good_for: str, *words: str) -> Variant:
    """A public model of Krea 2, as this layout's row."""
    return Variant(
        hub=f"krea/{hub}",
        architecture="Krea-2",
        base_version="krea2",
        words=words,
        width=6144,
        blocks=BLOCKS,
        licence="Krea 2 Community (below 1 M$ revenue, for selling images too)",
        billions=12.8,
        card=24,
        good_for=good_for,
    )


KREA2 = Layout(
    family="krea2",
    component="transformer",
    variants={
        "krea2-raw": _public_krea2("Krea-2-Raw", "styles of all kinds; made to be trained on"),
        "krea2-turbo": _public_krea2("Krea-2-Turbo", "the same in 8 steps; to draw with, trained on Raw", "turbo"),
    },
    example="krea2-raw",
    sized_by=(".to_q", ".to_k", ".to_v", ".to_gate"),
    names={
        **names_within_blocks("blocks.#", "transformer_blocks.#", BLOCK),
        **names_within_blocks("txtfusion.layerwise_blocks.#", "text_fusion.layerwise_blocks.#", BLOCK),
        **names_within_blocks("txtfusion.refiner_blocks.#", "text_fusion.refiner_blocks.#", BLOCK),
        **OUTSIDE,
    },
    # The public script's choice, its authors', but for text_fusion.projector, a 1 x 12 that has no rank above 1; for
    # long runs they advise the attention alone.
    targets={
        "public-script": (*ATTENTION, "ff.up", "ff.down", "img_in", "final_layer.linear", *TEXT, *TIME),
        "attention": ATTENTION,
        "text-stream": (*(f"text_fusion.*.{x}" for x in (*ATTENTION, *FEED_FORWARD)), *TEXT),
        "time-embedding": TIME,
    },
    written={"diffusers": "transformer.{diffusers}", "kohya": "lora_unet_{original}"},
    with_alpha=("kohya",),
    tools={
        "comfyui": Reader(
            ("lora_unet_{original}", "diffusion_model.{original}", "diffusion_model.{diffusers}")
            + ("transformer.{diffusers}", "lycoris_{diffusers}", "{diffusers}")
        ),
        "diffusers": Reader(
            ("transformer.{diffusers}", "diffusion_model.{original}", "base_model.model.{original}"),
            ("the word lora", "original names alone"),
        ),
        "kohya": Reader(("lora_unet_{original}",), ("alpha everywhere",)),
    },
    versions=("krea2", "krea_2", "krea-2"),
)
