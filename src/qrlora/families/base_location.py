"""Locate a base model by its name: in the package, on this machine, on the hub."""

from __future__ import annotations

import difflib
from pathlib import Path

import torch

from ..built_in_bases import built_in_bases, installation_hint
from ..safetensors_files import Checkpoint
from . import hub_download, public_configs
from .family import Family
from .family_table import family_of_folder, family_of_tensors
from .pipeline_folder import absent_components, needed_components
from .weight_files import file_variant


def locate_base(name: str, dtype: torch.dtype = torch.float32) -> Path:
    """Locate a base: its folder or file, which is fetched, to be read in a dtype, if its name is a hub's."""
    built_in = built_in_bases()
    if name in built_in:
        return built_in[name]
    path = Path(name).expanduser()
    if path.is_file() and path.suffix != ".safetensors":
        raise ValueError(f"{path} is not a base model: give a pipeline's folder or a .safetensors checkpoint")
    if path.exists():
        return path
    here, _, revision = name.rpartition("@")
    if here in built_in or (here and Path(here).expanduser().exists()):
        raise ValueError(f"{here} is on this machine and has no revision {revision!r}: that is of a hub's OWNER/NAME")
    if found := hub_download.parse_hub_name(name):
        return _fetch_base(*found, dtype)
    if hint := installation_hint(name):
        raise FileNotFoundError(hint)
    close = difflib.get_close_matches(name, built_in, n=1, cutoff=0.5) + public_configs.near_hubs(name)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"built in: {', '.join(built_in) or 'none'}"
    raise FileNotFoundError(f"neither a built-in name, a file or folder, nor a hub's OWNER/NAME; {hint}")


def family_of_base(name: str) -> Family | None:
    """The family of a base that is on this machine, which is not opened; None: the name is a hub's, which is not asked.

    Raises: OSError, ValueError: as `locate_base`, or it is no base of a known family.
    """
    if not Path(name).expanduser().exists() and hub_download.parse_hub_name(name) and name not in built_in_bases():
        return None
    place = locate_base(name)
    return family_of_tensors(place, Checkpoint.of(place).places) if place.is_file() else family_of_folder(place)


def _fetch_base(repository: str, revision: str | None, dtype: torch.dtype) -> Path:
    """The folder of a hub repository in the hub's cache. Its index alone is fetched first, to learn the family. Weights
    that are there already are not fetched again in another variant, unless those would be coarser than `dtype`."""
    with hub_download.hub_or_cache():
        folder = hub_download.fetch_index(repository, revision).parent
        family = family_of_folder(folder)
        needed = needed_components(folder, family)
        variant = file_variant(dtype, hub_download.folder_files(folder), needed)
        if variant is None or (variant and dtype == torch.float32):
            variant = file_variant(dtype, hub_download.repository_files(repository, revision, folder), needed)
        return hub_download.fetch_pipeline(repository, revision, variant or "", absent_components(folder, family))
