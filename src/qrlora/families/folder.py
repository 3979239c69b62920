"""What the folder of a diffusers pipeline holds: its index, its parts and their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ..storage import read_metadata
from ..text import read_text
from . import hub
from .record import Family
from .weight_files import file_variant, weight_files


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises: ValueError: it holds something else.  OSError."""
    try:
        values = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable as JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(values).__name__}")
    return values


def check_parts(place: Path) -> None:
    """Every part that a pipeline's index names is there and whole; without a tokenizer's folder transformers would
    make up an empty one, and a cut file is reported without its name.

    Raises: OSError: a part is missing.  ValueError: a file is cut short.
    """
    for name, kind in read_json(place / "model_index.json").items():
        if name.startswith("_") or not isinstance(kind, list) or kind[0] is None:
            continue
        if not (place / name).is_dir() or not any((place / name).iterdir()):
            raise FileNotFoundError(f"its {name} is missing: {place / name} is no folder, or empty; fetch it again")
        for file in (place / name).glob("*.safetensors"):
            read_metadata(file)


def without(place: Path, family: Family) -> dict[str, None]:
    """{part: None} of the optional parts that a folder's index does not name: diffusers would call them missing.

    Raises: ValueError: the index does not name a part that every base of the family needs.
    """
    index = read_json(place / "model_index.json")
    needed = {*family.text_parts, family.part, "vae"}
    absent = [part for part in sorted({*needed, *family.optional_parts}) if (index.get(part) or [None])[0] is None]
    for part in absent:
        if part not in family.optional_parts:
            raise ValueError(f"{place} has no {part}, which every {family.name} base needs")
    return dict.fromkeys(absent)


def needed_parts(place: Path, family: Family) -> list[str]:
    """The parts with weights that a folder's index names."""
    absent = without(place, family)
    return [part for part in (*family.text_parts, family.part, "vae") if part not in absent]


def files_of_part(place: Path, family: Family, dtype: torch.dtype) -> list[Path]:
    """The files that hold the trainable part."""
    if place.is_file():
        return [place]
    variant = file_variant(dtype, hub.names_in(place), needed_parts(place, family))
    return weight_files(place / family.part, variant or "")
