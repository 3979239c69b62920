"""Opens the base model and the adapters' files that verbs sample from, and warns where they clash."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from .. import missing_triggers
from ..adapter import Adapter, Header
from ..config import SampleConfig
from ..families import Base, adapter_compatibility, open_base
from ..merging.roles import doubts
from . import adapter_files, console
from .unknown_words import warn_of_unknown_words


def open_base_and_adapters(
    config: SampleConfig, skip_text_encoders: bool, any_prompt: bool, on_stage: Callable[[str], Any]
) -> tuple[SampleConfig, Base, list[Adapter]]:
    """Open the base and the adapters to sample with; the config with nothing left open. on_stage (what is begun)."""
    adapters = [adapter_files.read_adapter(path, skip_text_encoders) for path in config.adapters]
    config, base = open_base_of_adapters(config, adapters, any_prompt, on_stage)
    return config, base, adapters


def open_base_of_adapters(
    config: SampleConfig, adapters: Sequence[Adapter], any_prompt: bool, on_stage: Callable[[str], Any]
) -> tuple[SampleConfig, Base]:
    """`open_base_and_adapters` of adapters that are read."""
    acting = [(adapter, x) for adapter, x in zip(adapters, config.strengths, strict=True) if x]
    if not any_prompt:
        missing_triggers.refuse_missing_triggers([config.prompt], acting)
    missing = missing_triggers.missing_triggers([config.prompt], acting)
    for doubt in (*missing, *doubts([adapter.header for adapter, _ in acting])):
        console.warn(doubt)
    config = dataclasses.replace(config, base=config.base or base_of_adapters(adapters))
    triggers = [trigger for adapter, _ in acting for trigger in missing_triggers.triggers_of(adapter)]
    warn_of_unknown_words(config.base, [config.prompt], triggers)
    on_stage("opening the base model")
    base = open_base(config.base, config.device, config.dtype, config.quantize, config.offload, config.revision)
    for adapter in adapters:
        adapter_compatibility.check_adapter_fits_base(base, adapter)
        if doubt := adapter_compatibility.weight_difference(base, adapter):
            console.warn(doubt)
    return config.filled(base.defaults), base


def sampling_settings(config: SampleConfig, any_prompt: bool) -> dict[str, Any]:
    """The settings that `sampling.generate` and `sampling.grid` share."""
    names = ("negative_prompt", "seed", "steps", "guidance", "size")
    return {"check_triggers": not any_prompt, **{name: getattr(config, name) for name in names}}


def drawing_bases(header: Header) -> set[str]:
    """The bases that the training of an adapter, or of a merge's sources, named to draw with (draw_with=); if they name
    none, the one that it was trained on."""
    configs = [header.config, *(source.get("config") or {} for source in header.parents)]
    return {name for config in configs if (name := config.get("draw_with"))} or {header.base}


def base_of_adapters(adapters: Sequence[Adapter]) -> str:
    """The base to open for adapters, in which they are to be drawn; the built-in one without adapters.

    Raises: ValueError: they name different bases, or none.
    """
    names = sorted({name for adapter in adapters for name in drawing_bases(adapter.header)})
    if not adapters:
        return SampleConfig.base
    if len(names) > 1 or not names[0]:
        found = ", ".join(name or "none" for name in names)
        raise ValueError(f"the adapters' files name these base models: {found}; choose one with --base")
    return names[0]
