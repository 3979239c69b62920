"""SDXL: a UNet of three levels, the lower two with transformers."""

from .layout import Layout, Reader, Variant
from .unet_names import unet_names

SELF = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")
CROSS = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")
PROMPT_READERS = ("attn2.to_k", "attn2.to_v")
EMBEDDINGS = tuple(f"{input}_embedding.linear_{k}" for input in ("time", "add") for k in (1, 2))

B_LORA = {"content": "up_blocks.0.attentions.0", "style": "up_blocks.0.attentions.1"}
"""Role -> the block that holds it, as B-LoRA found by trying (arXiv 2403.14572: its W^4 and W^5)."""

KOHYA = ("lora_unet_{original}", "lora_unet_{diffusers}")
ORIGINAL = ("diffusion_model.{original}",)
DIFFUSERS = ("unet.{diffusers}", "unet.{processor}")
BARE = ("{diffusers}", "{processor}")
LYCORIS = ("lycoris_{diffusers}",)

FAIR = "Fair AI Public 1.0-SD (changed models stay open)"
# Pony's authors add that paid services may not run it; NoobAI's, on the card of their epsilon model and for all its
# variants, that neither model nor images may be sold.
NOT_IN_SERVICES, NOT_SOLD = f"{FAIR}; not in paid services", f"{FAIR}; neither it nor images sold"


def _public_sdxl(hub: str, licence: str, good_for: str, *words: str) -> Variant:
    """A public model of SDXL, as this layout's row: its descendants differ in weights alone."""
    return Variant(
        hub=hub,
        architecture="stable-diffusion-xl-v1-base",
        base_version="sdxl_base_v1-0",
        words=words,
        width=2048,
        licence=licence,
        billions=2.57,
        card=8,
        good_for=good_for,
    )


SDXL = Layout(
    family="sdxl",
    component="unet",
    variants={
        "sdxl": _public_sdxl(
            "stabilityai/stable-diffusion-xl-base-1.0",
            "CreativeML Open RAIL++-M",
            "the most fine-tunes and LoRAs",
            "xl",
        ),
        "pony": _public_sdxl(
            "AstraliteHeart/pony-diffusion-v6-xl", NOT_IN_SERVICES, "cartoons, figures, by tags", "pony"
        ),
        "illustrious": _public_sdxl(
            "OnomaAIResearch/Illustrious-xl-early-release-v0", FAIR, "anime, by tags", "illustrious"
        ),
        "noobai-vpred": _public_sdxl(
            "Laxhar/noobai-XL-Vpred-1.0", NOT_SOLD, "anime in dark and bright, by tags", "noobai"
        ),
    },
    example="sdxl",
    sized_by=PROMPT_READERS,
    names=unet_names(3, (1, 2)),
    # The paper's text (B.1) says self-attention, its table 3 reads as all attention: 280 or 560 layers.
    # "text-stream" and "time-embedding" are ours: the layers in which a content and a style trained best on the first
    # edition's built-in base (docs/findings_first_edition.md); on today's a style does in self-attention (docs/log.md).
    targets={
        "self": SELF,
        "attention": SELF + CROSS,
        "text-stream": PROMPT_READERS,
        "time-embedding": ("time_emb_proj", *EMBEDDINGS),
        "b-lora": tuple(f"{block}.*.{ending}" for block in B_LORA.values() for ending in SELF + CROSS),
    },
    # ComfyUI ignores all attention layers of an SDXL LoRA in diffusers' names, so kohya's.
    written={"kohya": "lora_unet_{diffusers}", "diffusers": "unet.{diffusers}", "sgm": "lora_unet_{original}"},
    always_original=EMBEDDINGS,  # diffusers, reading kohya's, loses the number of its own "add_embedding_linear_1"
    tools={
        "comfyui": Reader((*KOHYA, *LYCORIS, *ORIGINAL, *DIFFUSERS, *BARE), ("attention in kohya names",)),
        "diffusers": Reader((*KOHYA, *DIFFUSERS), ("the word lora", "whole kohya files", "kohya files alone")),
        "a1111": Reader(KOHYA, ("pairs after one dot", "the older UNet's map"), ("lora_te1_", "lora_te2_")),
        "forge": Reader((*KOHYA, *LYCORIS, *ORIGINAL, *DIFFUSERS, *BARE), ("attention in kohya names",)),
        "kohya": Reader(KOHYA),
    },
    versions=("sdxl", "stable-diffusion-xl"),
    gallery="sdxl_",
    paper_presets=("self", "attention"),
)
