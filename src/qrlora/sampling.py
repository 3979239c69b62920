"""Images from a base and adapters, and grids over their strengths."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .adapter import Adapter
from .config import SampleConfig
from .config.type_checks import check_strengths
from .families import Base, adapter_compatibility
from .image_size import ImageSize
from .injection import applied, set_strengths
from .missing_triggers import refuse_missing_triggers
from .sampling_arguments import (
    OPENING_SETTINGS,
    AdapterOrFile,
    adapter_of,
    adapters_with_strengths,
    check_images_fit_memory,
    open_if_named,
    pair_prompts_and_seeds,
    steps_guidance_and_size,
)
from .sampling_batches import sample_batches

OnImage = Callable[[int, int], Any]
"""(images done, of how many)."""


def generate(
    base: Base | str | SampleConfig | None = None,
    prompt: str | Sequence[str] = "",
    adapters: Sequence[AdapterOrFile | tuple[AdapterOrFile, float]] = (),
    *,
    config: SampleConfig | None = None,
    negative_prompt: str = "",
    seed: int | Sequence[int] = 0,
    count: int = 1,
    steps: int | None = None,
    guidance: float | None = None,
    size: ImageSize | None = None,
    batch_size: int | None = None,
    check_triggers: bool = True,
    on_image: OnImage | None = None,
    **opening: Any,
) -> list[Image.Image]:
    """Images from the base with the sum of the adapters' updates on it, by the stock pipeline.

    Every image has its own generator: image k of seed s is, to rounding, image 0 of seed s + k, whatever the
    batch. The base is left as it was; adapters that were on it before act too.

    Args:    base: an open one; or a name, which is opened as device, dtype, quantize, offload and revision say; None:
             the default of SampleConfig.
             prompt: one for all `count` images, or one for each image.
             adapters: adapters or files, or (adapter or file, strength) pairs; strength 1 where none is given.
             config: all settings at once, instead of keywords; an open base may stand beside it. Nothing is written.
             seed: of the first image, each further one adds 1; or one for each image.
             steps, guidance, size: None for the base's own; size is a side in pixels, or "WIDTHxHEIGHT".
             batch_size: images at once; None: MAX_BATCH, fewer where a GPU's memory runs out or a CPU has large ones.
             check_triggers: refuse a prompt that lacks the trigger word of an adapter in use.
             on_image: (images done, of how many) after every batch.
    Returns: one RGB image of this size for each.
    Raises:  ValueError: counts or sizes that do not fit, a missing trigger word, an adapter of another base.
    """
    on_image = _with_old_name(on_image, opening)
    sampling = {"negative_prompt": negative_prompt, "steps": steps, "guidance": guidance, "size": size}
    base, config = (None, base) if isinstance(base, SampleConfig) else (base, config)
    if config is not None:
        keywords = {"prompt": prompt, **sampling, "seed": seed, "count": count, "adapters": tuple(adapters), **opening}
        settings = _settings_of_config(config, base, keywords)
        return generate(**settings, batch_size=batch_size, check_triggers=check_triggers, on_image=on_image)
    weighted = adapters_with_strengths(adapters)
    prompts, seeds = pair_prompts_and_seeds(prompt, seed, count)
    if check_triggers:
        refuse_missing_triggers(prompts, weighted)  # before a base is opened, which takes long
    opened = open_if_named(base, opening)
    return _sample_images(opened, weighted, prompts, seeds, sampling, batch_size, on_image)


def _sample_images(
    base: Base,
    adapters: Sequence[tuple[Adapter, float]],
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: dict[str, Any],
    batch_size: int | None,
    on_image: OnImage | None,
) -> list[Image.Image]:
    """Sample an image for each prompt and seed with the adapters applied to an open base; else as `generate`."""
    for adapter, _ in adapters:
        adapter_compatibility.check_adapter_fits_base(base, adapter)
    sample = _latents_sampler(base, prompts, seeds=seeds, **sampling)
    images: list[Image.Image] = []
    with base.on_device(), applied(base.model, adapters, not base.offload):
        for some in sample_batches(base, sample, len(prompts), sampling["size"], batch_size):
            images += base.decode_image(some)
            if on_image is not None:
                on_image(len(images), len(prompts))
    return images


def _with_old_name(on_image: OnImage | None, others: dict[str, Any]) -> OnImage | None:
    """`on_image`, or what was given under its old name, which is taken out of the other keywords."""
    if "on_picture" not in others:
        return on_image
    warnings.warn("on_picture is now on_image; the old name goes with 0.3", DeprecationWarning, stacklevel=3)
    return others.pop("on_picture")


def _settings_of_config(config: SampleConfig, base: Base | str | None, keywords: dict[str, Any]) -> dict[str, Any]:
    """The keywords of `generate` that a config stands for.

    Args:    base: an open one, or a name that goes before the config's.  keywords: what else `generate` was given.
    Raises:  ValueError: a setting is given beside the config that has it.
    """
    if given := [name for name, value in keywords.items() if value != getattr(SampleConfig, name, None)]:
        raise ValueError(f"{', '.join(given)} beside a config: give a config or keywords")
    names = ("prompt", "negative_prompt", "seed", "count", "steps", "guidance", "size")
    opening = () if isinstance(base, Base) else OPENING_SETTINGS
    settings = {name: getattr(config, name) for name in (*names, *opening)}
    return {
        **settings,
        "base": base or config.base,
        "adapters": list(zip(config.adapters, config.strengths, strict=True)),
    }


def grid(
    base: Base | str,
    prompt: str,
    content: AdapterOrFile,
    style: AdapterOrFile,
    content_strengths: Sequence[float],
    style_strengths: Sequence[float],
    *,
    negative_prompt: str = "",
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    size: ImageSize | None = None,
    check_triggers: bool = True,
    on_image: OnImage | None = None,
    **old_names: Any,
) -> list[list[Image.Image]]:
    """The image of each pair of strengths, all from one seed (the paper's figure 7).

    Both adapters go onto the model once, and images are sampled in batches in which each has its own strengths.

    Args:    as `generate`.
             on_image: called for every image once its batch is done.
    Returns: images[k][m] sampled at content_strengths[k] and style_strengths[m].
    Raises:  ValueError: as `generate`, and an empty list of strengths.
    """
    on_image = _with_old_name(on_image, old_names)
    if old_names:
        raise TypeError(f"grid() got an unexpected keyword argument {min(old_names)!r}")
    if not content_strengths or not style_strengths:
        raise ValueError("a grid needs at least one content strength and one style strength")
    check_strengths([*content_strengths, *style_strengths])
    content, style = adapter_of(content), adapter_of(style)
    if check_triggers:
        refuse_missing_triggers([prompt], [(content, 1.0), (style, 1.0)])
    base = open_if_named(base, {})
    for adapter in (content, style):
        adapter_compatibility.check_adapter_fits_base(base, adapter)
    cells = torch.cartesian_prod(*(torch.tensor(x, dtype=torch.float32) for x in (content_strengths, style_strengths)))
    images: list[Image.Image] = []
    sample = _latents_sampler(base, [prompt] * len(cells), negative_prompt, [seed] * len(cells), steps, guidance, size)
    with (
        base.on_device(),
        applied(base.model, [(content, 0.0), (style, 0.0)], not base.offload) as (of_content, of_style),
    ):

        def sample_cells(part: slice) -> Tensor:
            some = cells[part]
            set_strengths(base.model, {of_content: some[:, 0], of_style: some[:, 1]})
            return sample(part)

        at_once = 1 if adapter_compatibility.wants_single_images(base, [content, style]) else None
        for some in sample_batches(base, sample_cells, len(cells), size, at_once):
            for image in base.decode_image(some):
                images.append(image)
                if on_image is not None:
                    on_image(len(images), len(cells))
    width = len(style_strengths)
    return [images[row : row + width] for row in range(0, len(images), width)]


def _latents_sampler(
    base: Base,
    prompts: Sequence[str],
    negative_prompt: str,
    seeds: Sequence[int],
    steps: int | None,
    guidance: float | None,
    size: ImageSize | None,
) -> Callable[[slice], Tensor]:
    """(which of the prompts and seeds) -> their latents in one batch, with the base's own choice where None is given.
    The text encoders' turn is over when it returns."""
    count, strength, side = steps_guidance_and_size(base, steps, guidance, size)
    check_images_fit_memory(base, len(prompts), side)
    places = {text: k for k, text in enumerate(dict.fromkeys(prompts))}  # a prompt is held once, however many images
    embedded = base.embed([*places], negative_prompt, strength)

    def sample(part: slice) -> Tensor:
        # seeded on the CPU: the same noise on every device
        generators = [torch.Generator("cpu").manual_seed(int(s)) for s in seeds[part]]
        rows = embedded.rows([places[text] for text in prompts[part]])
        return base.denoise(rows, side, count, strength, generators)

    return sample
