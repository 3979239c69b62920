"""Short videos from a base and adapters, which may have been trained on images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .adapter import Adapter
from .families import FAMILIES, Base, adapter_compatibility
from .image_size import ImageSize, parse_image_size
from .injection import applied
from .missing_triggers import refuse_missing_triggers


def generate_video(
    base: Base,
    prompt: str,
    adapters: Sequence[tuple[Adapter, float]] = (),
    *,
    frames: int,
    negative_prompt: str = "",
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    size: ImageSize | None = None,
    check_triggers: bool = True,
) -> list[Any]:
    """The PIL frames of one video from the base with the sum of the adapters' updates on it, by the stock pipeline.

    Args:    base: of a family that draws videos.  adapters: (adapter, strength).
             frames: how many; 1 + a multiple of the frames that one frame of the latents holds (4 of Wan's VAE).
             steps, guidance, size: None for the base's own; size is a side in pixels, or "WIDTHxHEIGHT".
             check_triggers: refuse a prompt that lacks the trigger word of an adapter in use.
    Raises:  ValueError: a base that draws images alone, a number of frames or a size that does not fit, a missing
             trigger word, an adapter of another base.
    """
    check_frames(base, frames)
    if check_triggers:
        refuse_missing_triggers([prompt], adapters)
    for adapter, _ in adapters:
        adapter_compatibility.check_adapter_fits_base(base, adapter)
    own = base.defaults
    side = own.resolution if size is None else parse_image_size("size", size)
    count, strength = own.sample_steps if steps is None else steps, own.guidance if guidance is None else guidance
    base.check_size("size", side)
    embedded = base.embed([prompt], negative_prompt, strength)
    generator = torch.Generator("cpu").manual_seed(seed)  # on the CPU: the same noise on every device
    with base.on_device(), applied(base.model, list(adapters), not base.offload):
        latents = base.denoise(embedded, side, count, strength, [generator], frames)
    return base.decode_frames(latents)


def check_frames(base: Base, frames: int) -> None:
    """Raises ValueError, with what would do: a base that draws images alone, no videos; frames that its latents cannot
    hold."""
    step = base.family.frames_per_latent
    if step is None:
        served = ", ".join(x.layout.variants[x.layout.example].hub for x in FAMILIES.values() if x.frames_per_latent)
        raise ValueError(f"{base.name} ({base.family.name}) draws images alone; videos are drawn by such as {served}")
    each = step(base.pipe)
    if frames < 1 + each or (frames - 1) % each:
        nearest = 1 + each * max(1, round((frames - 1) / each))
        raise ValueError(f"frames must be 1 + a multiple of {each} for {base.name}, got {frames}: try {nearest}")
