"""The settings that lie in a base's folder, in qrlora.json: its own defaults for training and sampling."""

from pathlib import Path
from typing import Any, NamedTuple

from ..built_in_bases import built_in_bases
from ..config import FamilyDefaults
from ..json_objects import read_json_object


class BaseSettings(NamedTuple):
    """What a base says of itself, as fields of `Base`."""

    defaults: FamilyDefaults
    always_uncropped: bool = False
    reads_captions: bool = False


def read_base_settings(place: Path, defaults: FamilyDefaults) -> BaseSettings:
    """A family's default settings with the base's own on top, whether it only knows uncropped images and whether it
    reads prompts as captions, from the `qrlora.json` in its folder if there is one: {"defaults": {"train": {...},
    "sample": {...}}, "framing": "plain", "prompts": "captions"}. Built-in bases only know uncropped images."""
    path = place / "qrlora.json"
    settings: dict[str, Any] = read_json_object(path) if path.is_file() else {}
    plain = place in built_in_bases().values() or settings.get("framing") == "plain"
    try:
        own = defaults.with_base_defaults(settings.get("defaults", {}))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return BaseSettings(own, plain, settings.get("prompts") == "captions")
