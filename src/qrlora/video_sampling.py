"""Short videos from a base and adapters, which may have been trained on images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .config.type_checks import whole_number
from .devices import check_fits_memory
from .families import FAMILIES, Base, adapter_compatibility
from .image_size import ImageSize, height_and_width
from .injection import applied
from .missing_triggers import refuse_missing_triggers
from .sampling_arguments import (
    AdapterOrFile,
    adapters_with_strengths,
    open_if_named,
    pair_prompts_and_seeds,
    steps_guidance_and_size,
)


def generate_video(
    base: Base | str,
    prompt: str,
    adapters: Sequence[AdapterOrFile | tuple[AdapterOrFile, float]] = (),
    *,
    frames: int,
    negative_prompt: str = "",
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    size: ImageSize | None = None,
    check_triggers: bool = True,
    **opening: Any,
) -> list[Any]:
    """The PIL frames of one video from the base with the sum of the adapters' updates on it, by the stock pipeline.

    Args:    base, adapters, opening: as `sampling.generate`; the base is of a family that draws videos.
             frames: how many; 1 + a multiple of the frames that one frame of the latents holds (4 of Wan's VAE).
             steps, guidance, size: None for the base's own; size is a side in pixels, or "WIDTHxHEIGHT".
             check_triggers: refuse a prompt that lacks the trigger word of an adapter in use.
    Raises:  ValueError: a base that draws images alone, a number of frames or a size that does not fit, a missing
             trigger word, an adapter of another base.
    """
    weighted = adapters_with_strengths(adapters)
    (prompt,), (seed,) = pair_prompts_and_seeds(prompt, [seed], 1)
    frames = whole_number("frames", frames)
    if check_triggers:
        refuse_missing_triggers([prompt], weighted)
    opened = open_if_named(base, opening)
    check_frames(opened, frames)
    for adapter, _ in weighted:
        adapter_compatibility.check_adapter_fits_base(opened, adapter)
    count, strength, side = steps_guidance_and_size(opened, steps, guidance, size)
    check_frames_fit_memory(opened, frames, side)
    embedded = opened.embed([prompt], negative_prompt, strength)
    generator = torch.Generator("cpu").manual_seed(seed)  # on the CPU: the same noise on every device
    with opened.on_device(), applied(opened.model, weighted, not opened.offload):
        latents = opened.denoise(embedded, side, count, strength, [generator], frames)
    return opened.decode_frames(latents)


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


def check_frames_fit_memory(base: Base, frames: int, size: ImageSize) -> None:
    """Raises ValueError: more frames than the device's memory holds as the VAE decodes them, three numbers a pixel."""
    height, width = height_and_width(size)
    each = 3 * height * width * next(base.pipe.vae.parameters()).element_size()
    check_fits_memory(f"frames={frames} of {width} x {height} pixels", frames * each, base.device, "take fewer")
