"""Settings that cannot work, found before anything that takes long."""

from __future__ import annotations

import difflib
import warnings
from pathlib import Path
from typing import Any

import torch

from ..config import TrainConfig
from ..config.settings import DEFAULT_SLOTS
from ..devices import check_fits_memory, choose_device
from ..families import Base
from ..families.base_location import family_of_base
from ..families.family import Family
from ..families.hub_download import parse_hub_name
from ..image_size import height_and_width
from ..initialisation_methods import METHODS, describe_unused_slot
from ..injection.peft_methods import PREFIX, parse_peft_method
from ..noising import noising_of
from ..trigger_words import contains_word
from .distributed import Processes


def check_config(config: TrainConfig, on_preview: Any) -> None:
    """Raises ValueError: a config that cannot work with any base, found before one is opened."""
    if config.method.startswith(PREFIX):
        parse_peft_method(config.method)
    elif config.method not in METHODS:
        near = difflib.get_close_matches(config.method, METHODS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(METHODS)}, {PREFIX}KIND"
        raise ValueError(f"no method {config.method!r}; {hint}")
    # named and not refused: recipes that people hold have them, and headers the default slot
    if unused := describe_unused_slot(config.method, config.orthogonal_slot, DEFAULT_SLOTS[config.role]):
        warnings.warn(unused, stacklevel=3)
    if config.preview_prompt and not config.preview_every:
        wrong = f"preview_prompt={config.preview_prompt!r:.80} changes nothing without previews"
        warnings.warn(f"{wrong}: add preview_every=100, or leave it out", stacklevel=3)
    if config.preview_every and not contains_word(config.preview_prompt or config.prompt, config.trigger):
        lacks = f"preview_prompt={config.preview_prompt!r} lacks the trigger word {config.trigger!r}"
        warnings.warn(f"{lacks}: previews may not show what is trained", stacklevel=3)
    if config.preview_every and on_preview is None:
        raise ValueError(f"preview_every={config.preview_every} needs on_preview, which takes the images")
    _family_to_draw_with(config)
    if config.resolution is not None:  # images are read at it before a base is opened
        height, width = height_and_width(config.resolution)
        needed = 3 * 4 * height * width  # three colours in float32
        check_fits_memory(f"resolution={config.resolution}", needed, torch.device("cpu"), "take a smaller one")
    if Path(config.output).suffix != ".safetensors":
        raise ValueError(f"output must be a file name that ends in .safetensors, got {config.output}")


def _family_to_draw_with(config: TrainConfig) -> Family | None:
    """The family of the base that a training names to draw with; None: it names none, or one that only the hub has.
    Raises OSError, ValueError: there is no such base."""
    try:
        return family_of_base(config.draw_with) if config.draw_with else None
    except (OSError, ValueError) as error:
        raise type(error)(f"draw_with={config.draw_with}: {error}") from error


def check_opening_settings(config: TrainConfig, base: Base) -> None:
    """Raises ValueError: settings that say how a base is opened, and of an open one are not true."""
    own = str(base.model.dtype).removeprefix("torch.")
    of_hub = parse_hub_name(base.name)
    differing = {
        "dtype": config.dtype not in ("auto", own),
        "quantize": bool(config.quantize) and base.original is None,
        "device": config.device != "auto" and choose_device(config.device) != base.device,
        "offload": config.offload and not base.offload,
        "revision": bool(config.revision) and (of_hub is None or config.revision != (of_hub[1] or "main")),
    }
    if given := ", ".join(f"{name}={getattr(config, name)}" for name in differing if differing[name]):
        place = f"{base.name} is open in {own} on {base.device}"
        raise ValueError(f"{given} say how a base is opened, and {place}: leave them out")


def warn_of_late_outputs(config: TrainConfig) -> None:
    """Warn of previews and adapters that are to come after more updates than there are."""
    assert config.steps is not None
    for name in ("preview_every", "adapter_every"):
        if getattr(config, name) > config.steps:
            late = f"{name}={getattr(config, name)} is beyond the last update, steps={config.steps}"
            warnings.warn(f"{late}: it changes nothing", stacklevel=5)


def check_config_fits_base(base: Base, config: TrainConfig, processes: Processes) -> None:
    """Check, before anything that takes long, that a base can be trained with this config.

    Raises: ValueError: a timestep_sampling or min_snr_gamma that its noising does not have; a resolution that does not
            fit; a rank above the smaller side of a layer, with the layer and its shape; a batch that cannot be divided
            by the number of processes.
    """
    assert config.rank is not None and config.targets is not None
    assert config.timestep_sampling is not None and config.resolution is not None
    if (family := _family_to_draw_with(config)) and family is not base.family:
        other = f"draw_with={config.draw_with} is a {family.name} base, {base.name} is of {base.family.name}"
        raise ValueError(f"{other}: an adapter fits bases of the same layers alone")
    noising_of(base.pipe.scheduler.config, config.min_snr_gamma, config.timestep_sampling)
    base.check_size("resolution", config.resolution)
    if (config.batch_size or 0) % processes.count:
        hint = f"use a multiple of {processes.count}"
        raise ValueError(f"batch_size={config.batch_size} cannot be shared by {processes.count} processes: {hint}")
    layers = base.target_layers(config.targets)
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in layers.items()}
    name = min(shapes, key=lambda layer: min(shapes[layer]))
    if config.rank > min(shapes[name]):
        o, i = shapes[name]
        raise ValueError(f"rank {config.rank} is above the smaller side of {name} ({o} x {i}): use rank {min(o, i)}")
