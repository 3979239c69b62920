"""Images from a base and adapters, and grids over their strengths."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from os import PathLike
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .adapter import Adapter
from .config import SampleConfig
from .config.type_checks import MAX_COUNT, MAX_SEED, check_strengths, whole_number
from .families import Base, adapter_compatibility, open_base
from .files import load
from .image_size import ImageSize, parse_image_size
from .injection import applied, set_strengths
from .missing_triggers import refuse_missing_triggers
from .sampling_batches import sample_batches

AdapterOrFile = Adapter | str | PathLike[str]
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
    weighted = _adapters_with_strengths(adapters)
    prompts, seeds = _pair_prompts_and_seeds(prompt, seed, count)
    if check_triggers:
        refuse_missing_triggers(prompts, weighted)  # before a base is opened, which takes long
    opened = _open_if_named(base, opening)
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


OPENING_SETTINGS = ("device", "dtype", "quantize", "offload", "revision")
"""Settings of opening a base."""


def _open_if_named(base: Base | str | None, opening: dict[str, Any]) -> Base:
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


def _adapters_with_strengths(
    adapters: Sequence[AdapterOrFile | tuple[AdapterOrFile, float]],
) -> list[tuple[Adapter, float]]:
    """Adapters with their strengths; files are read. Raises ValueError: no list, or something else in it."""
    if isinstance(adapters, Adapter | str | PathLike | Mapping) or not isinstance(adapters, Iterable):
        example = "adapters is a list of adapters or files, or of pairs with a strength: [('dog.safetensors', 0.8)]"
        raise ValueError(f"{example}; got {type(adapters).__name__}")
    pairs = [item if isinstance(item, tuple) and len(item) == 2 else (item, 1.0) for item in adapters]
    check_strengths([strength for _, strength in pairs])
    return [(_adapter_of(adapter), strength) for adapter, strength in pairs]


def _adapter_of(item: Any) -> Adapter:
    """An adapter, or the one in a file. Raises ValueError: neither."""
    if not isinstance(item, Adapter | str | PathLike):
        raise ValueError(f"an adapter or its file is needed, got {item!r:.80}")
    return item if isinstance(item, Adapter) else load(item)


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
    content, style = _adapter_of(content), _adapter_of(style)
    if check_triggers:
        refuse_missing_triggers([prompt], [(content, 1.0), (style, 1.0)])
    base = _open_if_named(base, {})
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
    own = base.defaults
    side = parse_image_size("size", size) or own.resolution
    count = own.sample_steps if steps is None else whole_number("steps", steps)
    strength = own.guidance if guidance is None else guidance
    if not isinstance(strength, Real) or not 1 <= count <= MAX_COUNT or not 0 <= strength <= MAX_COUNT:
        raise ValueError(f"steps must be 1 or more and guidance 0 or more, got {count} and {strength!r:.80}")
    base.check_size("size", side)
    if base.missing_components:
        missing = ", ".join(base.missing_components)
        raise ValueError(f"the base was opened for training only and has no {missing}: open it again")

    embedded = base.embed(prompts, negative_prompt, strength)

    def sample(part: slice) -> Tensor:
        # seeded on the CPU: the same noise on every device
        generators = [torch.Generator("cpu").manual_seed(int(s)) for s in seeds[part]]
        return base.denoise(embedded.rows(range(len(seeds))[part]), side, count, strength, generators)

    return sample


def _pair_prompts_and_seeds(
    prompt: str | Sequence[str], seed: int | Sequence[int], count: int
) -> tuple[list[str], list[int]]:
    """One prompt and one seed for each image to sample."""
    if not 1 <= whole_number("count", count) <= MAX_COUNT:
        raise ValueError(f"count must be 1 or more, got {count}")
    if not isinstance(prompt, Sequence) or not all(isinstance(x, str) for x in prompt):
        raise ValueError(f"prompt must be text, or a list of one text for each image, got {prompt!r:.80}")
    prompts = [prompt] * count if isinstance(prompt, str) else list(prompt)
    if not isinstance(seed, Iterable):
        seeds = [whole_number("seed", seed) + k for k in range(len(prompts))]
    else:
        seeds = [whole_number("seed", x) for x in seed]
        prompts = prompts * len(seeds) if isinstance(prompt, str) and count == 1 else prompts
    if wrong := [x for x in seeds if abs(x) > MAX_SEED]:
        raise ValueError(f"seed must be at most {MAX_SEED}, got {wrong[0]}")
    if not prompts or len(prompts) != len(seeds) or (not isinstance(prompt, str) and count != 1):
        found = f"{len(prompts)} prompts, {len(seeds)} seeds, count {count}"
        raise ValueError(f"give one prompt and a count, or one prompt and one seed for each image; got {found}")
    return prompts, seeds
