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
from .sd3 import SD3
from .sd15 import SD15
from .sdxl import SDXL
from .wan import WAN
from .z_image import Z_IMAGE

FAMILIES: dict[str, Family] = {
    family.name: family for family in (SDXL, SD3, FLUX, SD15, QWEN_IMAGE, Z_IMAGE, FLUX2, KREA2, WAN)
}


def family_of_folder(place: Path) -> Family:
    """The row of FAMILIES whose pipeline class a folder's model_index.json names."""
    index = place / "model_index.json"
    if not index.is_file():
        raise FileNotFoundError(f"{place} is no diffusers pipeline, it has no model_index.json")
    kind = read_json_object(index).get("_class_name")
    for family in FAMILIES.values():
        if kind in (family.pipeline, *family.other_pipelines, *family.compatible_pipelines):
            return family
    known = ", ".join(x for f in FAMILIES.values() for x in (f.pipeline, *f.other_pipelines))
    raise ValueError(f"{place} is a {kind}, which is not supported; supported: {known}")


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
