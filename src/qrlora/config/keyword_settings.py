"""Settings of a function that takes a config or keywords."""

from collections.abc import Mapping
from typing import Any, TypeVar

from .renamed_settings import with_new_names
from .settings import SampleConfig, TrainConfig
from .type_checks import check_types

Config = TypeVar("Config", TrainConfig, SampleConfig)


def config_from_arguments(kind: type[Config], config: Config | None, settings: Mapping[str, Any]) -> Config:
    """A config as given, or one of keyword settings: what functions take that accept either.

    Raises: ValueError: both, or neither a config of this kind nor settings that it knows.
    """
    if config is None:
        renamed = with_new_names(kind, settings)
        check_types(kind, renamed)
        return kind(**renamed)
    if not isinstance(config, kind):
        raise ValueError(f"a {kind.__name__} is needed, got {type(config).__name__}; settings are keywords: steps=800")
    if settings:
        listed = ", ".join(settings)
        raise ValueError(f"{listed} beside a config: give a config or keywords, or dataclasses.replace(config, ...)")
    return config
