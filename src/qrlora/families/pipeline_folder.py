"""A diffusers pipeline's folder: its index model_index.json, its components' folders and their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..json_objects import read_json_object
from ..safetensors_files import FLOATS, places, read_metadata
from . import hub_download
from .family import Family
from .weight_files import file_variant, weight_files


def check_folder_components(place: Path, family: Family) -> None:
    """Every part that a pipeline's index names and a base needs is there and whole; without a tokenizer's folder
    transformers would make up an empty one, and a cut file is reported without its name.

    Raises: OSError: a component is missing.  ValueError: a file is cut short; a component's class is not named; the
            index says that the pipeline does more than its family's.
    """
    index = read_json_object(place / "model_index.json")
    for name, value in family.required_index.items():
        if index.get(name, value) != value:
            raise ValueError(f"{place} has {name}={index[name]!r:.80} in its model_index.json: {family.served_models}")
    absent = absent_components(place, family)
    for name, kind in read_json_object(place / "model_index.json").items():
        if not _is_component(name, kind) or name in absent:
            continue
        if len(kind) != 2 or not all(isinstance(x, str) for x in kind):
            raise ValueError(f"{place / 'model_index.json'}: {name:.80} must name library and class, got {kind!r:.80}")
        if not (place / name).is_dir() or not any((place / name).iterdir()):
            raise FileNotFoundError(f"its {name} is missing: {place / name} is no folder, or empty; fetch it again")
        for file in (place / name).glob("*.safetensors"):
            read_metadata(file)


def processors(place: Path) -> list[str]:
    """The components of a folder that read images beside words, such as FLUX.2-dev's `tokenizer`."""
    index = read_json_object(place / "model_index.json")
    return [name for name, kind in index.items() if _is_component(name, kind) and str(kind[1]).endswith("Processor")]


def _is_component(name: str, kind: Any) -> bool:
    """Whether an entry of an index means a component, not a setting of the pipeline, which may be a list of numbers."""
    numbers = isinstance(kind, list) and kind and all(isinstance(x, int | float) for x in kind)
    return not name.startswith("_") and isinstance(kind, list) and not numbers


def index_settings(place: Path) -> dict[str, Any]:
    """The pipeline's own settings in its folder's index."""
    index = read_json_object(place / "model_index.json")
    return {name: x for name, x in index.items() if not name.startswith("_") and not _is_component(name, x)}


def absent_components(place: Path, family: Family) -> dict[str, None]:
    """{component: None} of the optional components that a folder's index does not name, which diffusers would call
    missing, and of those that it names and a base here does without, such as a checker of finished images.

    Raises: ValueError: the index does not name a component that every base of the family needs, or a text encoder's
            tokenizer.
    """
    index = read_json_object(place / "model_index.json")
    tokenizers = {component: family.tokenizer_of(component) for component in family.text_encoders}
    needed = {*family.text_encoders, *tokenizers.values(), family.component, "vae", "scheduler"}
    listed = {component for component, kind in index.items() if _is_component(component, kind)}
    named = {component for component in needed & listed if index[component] not in ([], [None, None])}
    for component in sorted(needed - named - {*family.optional_components}):
        raise ValueError(f"{place} has no {component}, which every {family.name} base needs: {family.served_models}")
    for component, tokenizer in tokenizers.items():
        if component in named and tokenizer not in named:
            raise ValueError(
                f"{place} has {component} without {tokenizer}: name both, or none, in its model_index.json"
            )
    return dict.fromkeys(sorted((needed | listed) - named))


def needed_components(place: Path, family: Family) -> list[str]:
    """The components with weights that a folder's index names."""
    absent = absent_components(place, family)
    return [component for component in (*family.text_encoders, family.component, "vae") if component not in absent]


def check_component_weights(place: Path, component: str, model: nn.Module, variant: str) -> None:
    """A component of the folder has each of its weights from its files, as they hold it: diffusers leaves out what a
    file lacks, and integers become numbers without their scale.

    Args:    model: the component as it was opened.  variant: of its files.
    Raises:  ValueError, with one of them: weights are missing, are no floating-point numbers, or have something beside
             them that says how they are to be read.
    """
    lacking = sorted(name for name, x in model.state_dict().items() if x.is_meta)
    if lacking:
        raise ValueError(f"its {component} lacks {len(lacking)} of its weights, such as {lacking[0]}: fetch it again")
    if "quantization_config" in read_json_object(place / component / "config.json"):
        return
    held = {name: x for file in weight_files(place / component, variant) for name, x in places(file).items()}
    state = model.state_dict()
    known = state.keys()
    layers = {name.rpartition(".")[0] for name in known} - {""}
    beside = sorted(name for name in held.keys() - known if name.rpartition(".")[0] in layers)
    if beside:
        raise ValueError(f"its {component} has {len(beside)} tensors that no weight is made of, such as {beside[0]}")
    floats = {name for name, x in state.items() if x.is_floating_point() or x.dtype in (torch.int8, torch.uint8)}
    strange = sorted(name for name in held.keys() & floats if held[name].dtype not in FLOATS)  # a norm counts, too
    if strange:
        kind = held[strange[0]].dtype
        raise ValueError(
            f"its {component} has {len(strange)} weights in no floating-point numbers: {strange[0]} ({kind})"
        )


def weight_files_of_trainable_component(place: Path, family: Family, dtype: torch.dtype) -> list[Path]:
    """The files in the folder that hold the trainable component."""
    if place.is_file():
        return [place]
    variant = file_variant(dtype, hub_download.folder_files(place), needed_components(place, family))
    return weight_files(place / family.component, variant or "")
