"""The small base models that are installed with qrlora: the demo's in this package, others in `qrlora-bases`."""

import importlib.util
from pathlib import Path

from . import __version__

FOLDER = Path(__file__).parent / "world" / "bases"
"""The demo's base model, in the folder of its name."""
SEPARATE = ("tiny-sd3", "tiny-sdxl")
"""Base models of the distribution `qrlora-bases`: with them this package would be too large to download for one."""


def data_package() -> Path | None:
    """The folder of `qrlora-bases`, None where it is not installed."""
    found = importlib.util.find_spec("qrlora_bases")
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None


def built_in_bases() -> dict[str, Path]:
    """{name: folder of a diffusers pipeline} of the base models that are installed, sorted by name."""
    folders = [folder for folder in (FOLDER, data_package()) if folder and folder.is_dir()]
    found = [path for folder in folders for path in folder.iterdir() if (path / "model_index.json").is_file()]
    return {path.name: path for path in sorted(found, key=lambda path: path.name)}


def folder_of(name: str) -> Path:
    """Where a built-in base is, or would be if it were made anew."""
    return built_in_bases().get(name, FOLDER / name)


def installation_hint(name: str) -> str:
    """How to get a base of `SEPARATE` that is not installed; "" for any other name."""
    return in_data_package(name) if name in SEPARATE and name not in built_in_bases() else ""


def in_data_package(what: str) -> str:
    """The line about something that `qrlora-bases` has and that is missing here; it is on no package index."""
    command = "pip install packages/qrlora-bases"
    return f"{what} comes in a package of its own: {command} (in the repository of qrlora {__version__})"
