"""TOML recipes and `name=value` overrides as a config."""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from ..text_files import read_text
from .image_settings import join_repeated
from .renamed_settings import new_setting_name, with_new_names
from .settings import SampleConfig, TrainConfig
from .type_checks import check_types, holds_list, parse_override

Config = TypeVar("Config", TrainConfig, SampleConfig)


def read_recipe(path: str | Path | None, overrides: Iterable[str] = (), kind: type[Config] = TrainConfig) -> Config:
    """Settings from a TOML recipe with overrides on top.

    Args:    path: a TOML file of `name = value` lines, or None for the defaults.  kind: TrainConfig or SampleConfig.
             overrides: "name=value"; the value as TOML writes it, quotes optional around text. A setting that holds
             one value or a list may come several times.
    Raises:  OSError: no such file. ValueError: not TOML, an unknown name (with the nearest known one), a wrong type.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = with_new_names(kind, tomllib.loads(read_text(path)))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a TOML recipe: {error}") from error
    repeated: dict[str, list[Any]] = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"an override reads name=value, got {override!r}")
        name = new_setting_name(kind, name.strip())
        before = repeated.get(name, []) if holds_list(kind, name) else []
        repeated[name] = [*before, parse_override(kind, name, text.strip())]
    values |= {name: join_repeated(name, given) for name, given in repeated.items()}
    check_types(kind, values)
    return kind(**values)
