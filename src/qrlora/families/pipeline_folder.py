"""What the folder of a diffusers pipeline holds: its index, its parts and their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..safetensors_files import FLOATS, places, read_metadata
from ..text_files import read_text
from . import hub_download
from .family import Family
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


def check_parts(place: Path, family: Family) -> None:
    """Every part that a pipeline's index names and a base needs is there and whole; without a tokenizer's folder
    transformers would make up an empty one, and a cut file is reported without its name.

    Raises: OSError: a part is missing.  ValueError: a file is cut short; a part's class is not named.
    """
    absent = without(place, family)
    for name, kind in read_json(place / "model_index.json").items():
        if name.startswith("_") or not isinstance(kind, list) or name in absent:
            continue
        if len(kind) != 2 or not all(isinstance(x, str) for x in kind):
            raise ValueError(f"{place / 'model_index.json'}: {name:.80} must name library and class, got {kind!r:.80}")
        if not (place / name).is_dir() or not any((place / name).iterdir()):
            raise FileNotFoundError(f"its {name} is missing: {place / name} is no folder, or empty; fetch it again")
        for file in (place / name).glob("*.safetensors"):
            read_metadata(file)


def without(place: Path, family: Family) -> dict[str, None]:
    """{part: None} of the optional parts that a folder's index does not name, which diffusers would call missing, and
    of the parts that it names and a base here does without, such as a checker of finished images.

    Raises: ValueError: the index does not name a part that every base of the family needs, or a text encoder's
            tokenizer.
    """
    index = read_json(place / "model_index.json")
    tokenizers = {part: part.replace("text_encoder", "tokenizer") for part in family.text_parts}
    needed = {*family.text_parts, *tokenizers.values(), family.part, "vae", "scheduler"}
    listed = {part for part, kind in index.items() if not part.startswith("_") and isinstance(kind, list)}
    named = {part for part in needed & listed if index[part] not in ([], [None, None])}
    for part in sorted(needed - named - {*family.optional_parts}):
        raise ValueError(f"{place} has no {part}, which every {family.name} base needs")
    for part, tokenizer in tokenizers.items():
        if part in named and tokenizer not in named:
            raise ValueError(f"{place} has {part} without {tokenizer}: name both, or none, in its model_index.json")
    return dict.fromkeys(sorted((needed | listed) - named))


def needed_parts(place: Path, family: Family) -> list[str]:
    """The parts with weights that a folder's index names."""
    absent = without(place, family)
    return [part for part in (*family.text_parts, family.part, "vae") if part not in absent]


def check_weights(place: Path, part: str, model: nn.Module, variant: str) -> None:
    """A part has each of its weights from its files, as the numbers that they hold: diffusers leaves out what a file
    lacks, and integers become numbers without their scale.

    Args:    model: the part as it was opened.  variant: of its files.
    Raises:  ValueError, with one of them: weights are missing, are no floating-point numbers, or have something beside
             them that says how they are to be read.
    """
    lacking = sorted(name for name, x in model.state_dict().items() if x.is_meta)
    if lacking:
        raise ValueError(f"its {part} lacks {len(lacking)} of its weights, such as {lacking[0]}: fetch it again")
    if "quantization_config" in read_json(place / part / "config.json"):
        return
    held = {name: x for file in weight_files(place / part, variant) for name, x in places(file).items()}
    known = model.state_dict().keys()
    layers = {name.rpartition(".")[0] for name in known} - {""}
    beside = sorted(name for name in held.keys() - known if name.rpartition(".")[0] in layers)
    if beside:
        raise ValueError(f"its {part} has {len(beside)} tensors that no weight is made of, such as {beside[0]}")
    strange = sorted(name for name in held.keys() & known if held[name].dtype not in FLOATS)
    if strange:
        kind = held[strange[0]].dtype
        raise ValueError(f"its {part} has {len(strange)} weights in no floating-point numbers: {strange[0]} ({kind})")


def files_of_part(place: Path, family: Family, dtype: torch.dtype) -> list[Path]:
    """The files that hold the trainable part."""
    if place.is_file():
        return [place]
    variant = file_variant(dtype, hub_download.names_in(place), needed_parts(place, family))
    return weight_files(place / family.part, variant or "")
