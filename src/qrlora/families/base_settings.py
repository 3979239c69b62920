"""The settings that lie in a base's folder, in qrlora.json: its own defaults for training and sampling."""

from pathlib import Path

from ..built_in_bases import built_in_bases
from ..config import FamilyDefaults
from ..json_objects import read_json_object


def read_base_settings(place: Path, defaults: FamilyDefaults) -> tuple[FamilyDefaults, bool]:
    """A family's default settings with the base's own on top, and whether it only knows uncropped images, from the
    `qrlora.json` in its folder if there is one: {"defaults": {"train": {...}, "sample": {...}}, "framing": "plain"}.
    Built-in bases only know uncropped ones."""
    path, plain = place / "qrlora.json", place in built_in_bases().values()
    if not path.is_file():
        return defaults, plain
    settings = read_json_object(path)
    try:
        return defaults.with_base_defaults(settings.get("defaults", {})), plain or settings.get("framing") == "plain"
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
