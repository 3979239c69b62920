"""FAMILIES: every backbone that we train and sample with, and which one a base is of; a new one is a file and a row."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ..json_objects import read_json_object
from .family import Family
from .flux import FLUX
from .flux2 import FLUX2
from .krea2 import KREA2
from .qwen_image import QWEN_IMAGE
from .qwen_image_21 import QWEN_IMAGE_21
from .sd3 import SD3
from .sd15 import SD15
from .sdxl import SDXL
from .wan import WAN
from .z_image import Z_IMAGE

FAMILIES: dict[str, Family] = {
    family.name: family for family in (SDXL, SD3, FLUX, SD15, QWEN_IMAGE, Z_IMAGE, FLUX2, KREA2, WAN, QWEN_IMAGE_21)
}


def family_of_folder(place: Path) -> Family:
    """The row of FAMILIES whose pipeline class a folder's model_index.json names.

    Raises: OSError: it has none.  ValueError: another class, with what is served in its place.
    """
    index, modular = place / "model_index.json", place / "modular_model_index.json"
    if modular.is_file() and not index.is_file():
        kind = read_json_object(modular).get("_class_name")
        whole = "which is not supported, since it has no model_index.json of a whole pipeline"
        raise ValueError(f"{place} is a {kind} of diffusers' modular blocks, {whole}; supported: {_known_pipelines()}")
    if not index.is_file():
        raise FileNotFoundError(f"{place} is no diffusers pipeline, it has no model_index.json")
    kind = read_json_object(index).get("_class_name")
    for family in FAMILIES.values():
        if kind in (family.pipeline, *family.other_pipelines, *family.compatible_pipelines):
            return family
    relative = _family_of_similar_pipeline(str(kind))
    known = f"{relative.pipeline}, {relative.served_models}" if relative else _known_pipelines()
    raise ValueError(f"{place} is a {kind}, which is not supported; supported: {known}")


def _known_pipelines() -> str:
    return ", ".join(x for family in FAMILIES.values() for x in (family.pipeline, *family.other_pipelines))


def _family_of_similar_pipeline(kind: str) -> Family | None:
    """The row of FAMILIES whose pipeline classes begin as another does, as FluxFillPipeline and FluxPipeline, of
    several the one with the longest beginning; None: no row's."""
    stems = {
        x.removesuffix("Pipeline"): family
        for family in FAMILIES.values()
        for x in (family.pipeline, *family.other_pipelines)
    }
    found = [stem for stem in stems if kind.startswith(stem)]
    return stems[max(found, key=len)] if found else None


def family_of_tensors(path: Path, tensors: Collection[str]) -> Family:
    """The row of FAMILIES whose tell-tale tensors a single-file checkpoint holds.

    Raises: ValueError: of no known family.
    """
    names = {name.removeprefix("model.diffusion_model.") for name in tensors}
    for family in FAMILIES.values():
        own = family.checkpoint_keys
        if own and {family.normalize_key(name) for name in names}.issuperset(own):
            return family
    known = ", ".join(FAMILIES)
    raise ValueError(f"{path} is not a whole base model of a known family ({known}); an adapter is no base model")
