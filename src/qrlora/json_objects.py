"""JSON objects from files and from entries of metadata; anything else is refused by name."""

import json
from pathlib import Path
from typing import Any

from .text_files import read_text


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises: ValueError: it holds something else.  OSError."""
    return parse_json_object(read_text(path), str(path))


def parse_json_object(text: str, name: str) -> dict[str, Any]:
    """The JSON object in a text. Raises ValueError, naming it: something else."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not readable as JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{name} must hold a JSON object, got {values!r:.80}")
    return values
