"""The arguments that images, grids and videos are sampled with: each checked once, with what would do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from os import PathLike
from typing import Any

import torch

from .adapter import Adapter
from .config import SampleConfig
from .config.type_checks import MAX_COUNT, MAX_SEED, check_strengths, whole_number
from .devices import check_fits_memory
from .families import Base, open_base
from .families.vae_memory import check_size_fits_memory
from .files import load
from .image_size import ImageSize, height_and_width, parse_image_size

AdapterOrFile = Adapter | str | PathLike[str]
PIXEL_BYTES = 3
"""Bytes of a pixel in RGB: images are held until all are sampled."""
SMALL_IMAGE = (64, 64)
"""Height and width in pixels of the smallest images that are of use, for counts that are checked before a base is
open."""

OPENING_SETTINGS = ("device", "dtype", "quantize", "offload", "revision")
"""Settings of opening a base."""


def open_if_named(base: Base | str | None, opening: dict[str, Any]) -> Base:
    """An open base, or the one of a name. Raises ValueError: settings that open one beside an open one, or unknown."""
    if unknown := sorted(opening.keys() - set(OPENING_SETTINGS)):
        raise ValueError(f"no setting {', '.join(unknown)}; a base is opened by {', '.join(OPENING_SETTINGS)}")
    if base is not None and not isinstance(base, Base | str | PathLike):
        raise ValueError(f"base must be an open base or a name, got {type(base).__name__}")
    if not isinstance(base, Base):
        return open_base(base or SampleConfig.base, **opening)
    if opening:
        raise ValueError(f"{', '.join(opening)} say how a base is opened, and this one is open: pass its name")
    return base


def adapters_with_strengths(
    adapters: Sequence[AdapterOrFile | tuple[AdapterOrFile, float]],
) -> list[tuple[Adapter, float]]:
    """Adapters with their strengths; files are read. Raises ValueError: no list, or something else in it."""
    if isinstance(adapters, Adapter | str | PathLike | Mapping) or not isinstance(adapters, Iterable):
        example = "adapters is a list of adapters or files, or of pairs with a strength: [('dog.safetensors', 0.8)]"
        raise ValueError(f"{example}; got {type(adapters).__name__}")
    pairs = [item if isinstance(item, tuple) and len(item) == 2 else (item, 1.0) for item in adapters]
    check_strengths([strength for _, strength in pairs])
    return [(adapter_of(adapter), strength) for adapter, strength in pairs]


def adapter_of(item: Any) -> Adapter:
    """An adapter, or the one in a file. Raises ValueError: neither."""
    if not isinstance(item, Adapter | str | PathLike):
        raise ValueError(f"an adapter or its file is needed, got {item!r:.80}")
    return item if isinstance(item, Adapter) else load(item)


def pair_prompts_and_seeds(
    prompt: str | Sequence[str], seed: int | Sequence[int], count: int
) -> tuple[Sequence[str], Sequence[int]]:
    """One prompt and one seed for each image to sample. Raises ValueError: another kind of either, more images than the
    machine's memory holds, or not as many prompts as seeds."""
    if not 1 <= whole_number("count", count) <= MAX_COUNT:
        raise ValueError(f"count must be 1 or more, got {count}")
    if not isinstance(prompt, Sequence) or not all(isinstance(x, str) for x in prompt):
        raise ValueError(f"prompt must be text, or a list of one text for each image, got {prompt!r:.80}")
    check_count_fits_memory(count)
    prompts = [prompt] * count if isinstance(prompt, str) else list(prompt)
    if not isinstance(seed, Iterable):
        first = whole_number("seed", seed)
        seeds = range(first, first + len(prompts))
    else:
        seeds = [whole_number("seed", x) for x in seed]
        prompts = prompts * len(seeds) if isinstance(prompt, str) and count == 1 else prompts
    ends = seeds[:: len(seeds) - 1 or 1] if isinstance(seeds, range) else seeds  # of a range the first and the last
    if wrong := [x for x in ends if abs(x) > MAX_SEED]:
        raise ValueError(f"seed must be at most {MAX_SEED}, got {wrong[0]}")
    if not prompts or len(prompts) != len(seeds) or (not isinstance(prompt, str) and count != 1):
        found = f"{len(prompts)} prompts, {len(seeds)} seeds, count {count}"
        raise ValueError(f"give one prompt and a count, or one prompt and one seed for each image; got {found}")
    return prompts, seeds


def steps_guidance_and_size(
    base: Base, steps: int | None, guidance: float | None, size: ImageSize | None
) -> tuple[int, float, ImageSize]:
    """The steps, guidance and size that images or a video are sampled with: the base's own where None is given.

    Raises: ValueError: steps beyond the timesteps that the base was trained with; a guidance below 0; a size that the
            base's images cannot have, or that does not fit the device's memory; a base that was opened for training.
    """
    own = base.defaults
    side = parse_image_size("size", size) or own.resolution
    count = own.sample_steps if steps is None else whole_number("steps", steps)
    strength = own.guidance if guidance is None else guidance
    most = base.pipe.scheduler.config.num_train_timesteps
    if not isinstance(strength, Real) or count < 1 or not 0 <= strength <= MAX_COUNT:
        raise ValueError(f"steps must be 1 or more and guidance 0 or more, got {count} and {strength!r:.80}")
    if count > most:
        raise ValueError(f"steps must be {most} or less, as many as {base.name} was trained with, got {count}")
    base.check_size("size", side)
    if base.missing_components:
        missing = ", ".join(base.missing_components)
        raise ValueError(f"the base was opened for training only and has no {missing}: open it again")
    check_size_fits_memory(base, "size", side)
    return count, strength, side


def check_images_fit_memory(base: Base, count: int, size: ImageSize | None = None) -> None:
    """Raises ValueError: more images of a size (None: the base's own) than the machine's memory holds."""
    check_count_fits_memory(count, height_and_width(size or base.defaults.resolution))


def check_count_fits_memory(count: int, size: tuple[int, int] = SMALL_IMAGE) -> None:
    """Raises ValueError: more images of this height and width than the machine's memory holds."""
    height, width = size
    needed = count * height * width * PIXEL_BYTES
    check_fits_memory(f"{count} images", needed, torch.device("cpu"), "take fewer at a time")
