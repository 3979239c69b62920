"""Backbones: the only rooms that know one. A new family is one file and one line in FAMILIES."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import FamilyDefaults
from ..devices import choose_device, number_type
from ..storage import places
from . import hub, public, quantized, single, variants
from .base import Base
from .flux import FLUX
from .folder import check_parts, check_weights, files_of_part, needed_parts, read_json, without
from .messages import SlowDevice, configured, one_clear_line, quiet, tell_start
from .record import Condition, Family, Framing
from .sd3 import SD3
from .sdxl import SDXL
from .weight_files import file_variant, variant_of

__all__ = [
    "BUILT_IN",
    "FAMILIES",
    "Base",
    "Condition",
    "Family",
    "Framing",
    "built_in_names",
    "SlowDevice",
    "choose_device",
    "number_type",
    "open_base",
]

FAMILIES: dict[str, Family] = {"sdxl": SDXL, "sd3": SD3, "flux": FLUX}

BUILT_IN = Path(__file__).parents[1] / "world" / "bases"
"""Folder of the base models in the package, each under its name."""


def open_base(
    name: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str = "",
    offload: bool = False,
    revision: str = "",
) -> Base:
    """A base model, ready to train or sample.

    Args:    name: a built-in name (a folder of BUILT_IN), a local folder of a diffusers pipeline, one `.safetensors`
             checkpoint, or a hub name OWNER/NAME. Files of the variant fp16 are read where they are and 16 bits are
             kept, or where there are no others.
             device: auto, or a torch device.  dtype: float32, bfloat16, float16, or auto, see `number_type`.
             quantize: keep the linear layers of the trainable part as nf4, int8 or float8; "": in dtype.
             offload: every part waits on the CPU for its turn on the device; else the trainable part stays there once
             its first turn has come (`Base.on_device`).
             revision: branch, tag or commit of a hub's repository; OWNER/NAME@REVISION says the same.
    Raises:  OSError: it does not exist, may not be read or cannot be fetched.
             ValueError: not a base model of a known family; a device or dtype that is not there; a quantisation whose
             library or GPU is missing.
    """
    home = choose_device(device)
    numbers = number_type(dtype, home)
    name = f"{name}@{revision}" if revision else str(name)
    with one_clear_line(name):
        quantized.check(quantize, home)
        place = place_of(name, numbers)
        family = _family_of_checkpoint(place) if place.is_file() else family_of_folder(place)
        tell_start(name, files_of_part(place, family, numbers), home, numbers, quantize)
        with quiet():
            filled_on = home if quantize == "nf4" else torch.device("cpu")
            pipe, original = _opened(place, family, numbers, quantize, filled_on)
    pipe.to("cpu", silence_dtype_warnings=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    defaults, plain = own_settings(place, dataclasses.replace(family.defaults, **family.exceptions(pipe)))
    return Base(pipe, family, name, defaults, plain, original, home, offload)


def built_in_names() -> list[str]:
    """The names of the bases in the package; a path, wherever it leads, is none."""
    return sorted(path.name for path in BUILT_IN.iterdir() if path.is_dir()) if BUILT_IN.is_dir() else []


def place_of(name: str, dtype: torch.dtype = torch.float32) -> Path:
    """The folder or file of a base, which is fetched, to be read in a dtype, if its name is a hub's."""
    built_in = built_in_names()
    if name in built_in:
        return BUILT_IN / name
    path = Path(name).expanduser()
    if path.is_file() and path.suffix != ".safetensors":
        raise ValueError(f"{path} is not a base model: give a pipeline's folder or a .safetensors checkpoint")
    if path.exists():
        return path
    here, _, revision = name.rpartition("@")
    if here in built_in or (here and Path(here).expanduser().exists()):
        raise ValueError(f"{here} is on this machine and has no revision {revision!r}: that is of a hub's OWNER/NAME")
    if found := hub.split(name):
        return _fetched(*found, dtype)
    close = difflib.get_close_matches(name, built_in, n=1, cutoff=0.5) + public.near_hubs(name)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"built in: {', '.join(built_in) or 'none'}"
    raise FileNotFoundError(f"neither a built-in name, a file or folder, nor a hub's OWNER/NAME; {hint}")


def _fetched(repository: str, revision: str | None, dtype: torch.dtype) -> Path:
    """The folder of a hub repository in the hub's cache. Its index alone is fetched first, to learn the family. Weights
    that are there already are not fetched again in another variant, unless those would be coarser than `dtype`."""
    folder = hub.index_of(repository, revision).parent
    needed = needed_parts(folder, family_of_folder(folder))
    variant = file_variant(dtype, hub.names_in(folder), needed)
    if variant is None or (variant and dtype == torch.float32):
        variant = file_variant(dtype, hub.files_of(repository, revision, folder), needed)
    return hub.fetch(repository, revision, variant or "")


def family_of_folder(place: Path) -> Family:
    """The family whose pipeline class a folder's model_index.json names."""
    index = place / "model_index.json"
    if not index.is_file():
        raise FileNotFoundError(f"{place} is no diffusers pipeline, it has no model_index.json")
    kind = read_json(index).get("_class_name")
    for family in FAMILIES.values():
        if kind in (family.pipeline, *family.same_parts):
            return family
    known = ", ".join(f.pipeline for f in FAMILIES.values())
    raise ValueError(f"{place} is a {kind}, which is not supported; supported: {known}")


def _family_of_checkpoint(path: Path) -> Family:
    """The family whose tell-tale tensors a single-file checkpoint holds, from the file's header alone.

    Raises: ValueError: not a whole safetensors file, or of no known family.
    """
    names = {name.removeprefix("model.diffusion_model.") for name in places(path)}
    for family in FAMILIES.values():
        if {family.respelt(name) for name in names}.issuperset(family.checkpoint_keys):
            return family
    known = ", ".join(FAMILIES)
    raise ValueError(f"{path} is not a whole base model of a known family ({known}); an adapter is no base model")


def _opened(
    place: Path, family: Family, dtype: torch.dtype, quantize: str, device: torch.device
) -> tuple[Any, Callable[[str], Tensor] | None]:
    """A pipeline from its folder or one file, and `Base.original`; bitsandbytes needs a GPU as the device.

    Raises: ValueError: a part is not there.
    """
    if place.is_file():
        return _opened_file(place, family, dtype, quantize, device)
    with configured(place):
        check_parts(place)
        variant = file_variant(dtype, hub.names_in(place), needed_parts(place, family)) or ""
        absent, how = without(place, family), quantized.instructions(family.part, quantize, dtype)
        types = {"default": dtype, "vae": torch.float32}
        texts = {part: _part(place, part, dtype, variant) for part in family.text_parts if part not in absent}
        told = {**absent, **texts, **how, **_files(variant)}
        pipe = _pipeline(family).from_pretrained(str(place), torch_dtype=types, **told)
        for part in needed_parts(place, family):
            check_weights(place, part, getattr(pipe, part), variant)
    variants.check(pipe, family)
    if not quantize:
        return pipe, None
    quantized.keep_no_copies(getattr(pipe, family.part))
    return pipe, quantized.original_weights(place / family.part, variant)


def _opened_file(
    place: Path, family: Family, dtype: torch.dtype, quantize: str, device: torch.device
) -> tuple[Any, Callable[[str], Tensor] | None]:
    """A file's configs and tokenizers come from a folder of the same name beside it if there is one (`model/` beside
    `model.safetensors`), else diffusers fetches the family's once. Text encoders and VAE that the file lacks (FLUX is
    often the transformer alone) come from that folder too. The trainable part is filled on the device, weight by
    weight, once all else is known to be there.

    Raises: ValueError: a part is neither in the file nor in the folder.
    """
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    beside = place.with_suffix("")
    with configured(place):
        told = _from_beside(place, beside, family, dtype)
        if not told:  # named to diffusers, too, which would not know every spelling
            told = {"config": single.config_repository(place, family.respelt)}
        vae = {} if "vae" in told else single.own_vae(place, told["config"])
        config = single.config_file(told["config"], family.part)
        model, read = single.blank_part(place, read_json(config), dtype, family.respelt)
        try:
            pipe = _pipeline(family).from_single_file(
                str(place), torch_dtype=dtype, **told, **vae, **{family.part: model}
            )
        except SingleFileComponentError as error:
            lacking = str(error).strip().splitlines()[0]
            way_out = f"put a whole diffusers pipeline of its kind beside it, as the folder {beside}"
            raise ValueError(f"{place} is not a whole base model ({lacking}): {way_out}") from error
    variants.complete(pipe, family)
    pipe.register_modules(scheduler=variants.own_scheduler(place, family, pipe.scheduler))
    variants.check(pipe, family)
    quantized.fill(model, lambda name: read(name).to(device, dtype), quantize, device)
    return pipe, (lambda layer: read(f"{layer}.weight")) if quantize else None


def _from_beside(place: Path, beside: Path, family: Family, dtype: torch.dtype) -> dict[str, Any]:
    """What diffusers must be told of the folder beside a single file: that it holds the configs, which parts it is
    without, and the parts that are there and not in the file; of those it would find neither the VAE nor any encoder
    whose weights are `model.safetensors`."""
    if not (beside / "model_index.json").is_file():
        return {}
    if family_of_folder(beside) is not family:
        raise ValueError(f"{place} is a {family.name} base, the folder beside it, {beside}, is of another family")
    check_parts(beside)
    held = places(place)
    told: dict[str, Any] = {"config": str(beside), **without(beside, family)}
    for part, beginning in {**family.text_parts, "vae": single.VAE_BEGINNINGS}.items():
        in_file = any(name.startswith(beginning) for name in held)
        if part not in told and not in_file and any((beside / part).glob("*.safetensors")):
            variant = file_variant(dtype, hub.names_in(beside), [part]) or ""
            told[part] = _part(beside, part, torch.float32 if part == "vae" else dtype, variant)
            check_weights(beside, part, told[part], variant)
    return told


def _part(place: Path, part: str, dtype: torch.dtype, variant: str) -> Any:
    """One model from the folder of a pipeline.

    Raises: ValueError: weights are missing, for which transformers would draw random numbers and go on.
    """
    import diffusers
    import transformers

    room, kind = read_json(place / "model_index.json")[part]
    libraries = {"diffusers": diffusers, "transformers": transformers}
    if not hasattr(libraries.get(room), kind):
        raise ValueError(f"{place}: its {part} is of a class {room}.{kind}, which is not known")
    own = {variant_of(path.name) for path in (place / part).iterdir()}  # a part that lacks the variant is read plain
    told = {"torch_dtype": dtype, "output_loading_info": True, **_files(variant if variant in own else None)}
    model, found = getattr(libraries[room], kind).from_pretrained(str(place / part), **told)
    lacking = sorted(found["missing_keys"])
    if lacking:
        raise ValueError(f"its {part} lacks {len(lacking)} of its weights, such as {lacking[0]}: fetch it again")
    return model


def _files(variant: str | None) -> dict[str, Any]:
    """What `from_pretrained` must be told to read safetensors of a variant, or the plain ones."""
    return {"use_safetensors": True, "variant": variant or None}


def _pipeline(family: Family) -> Any:
    import diffusers

    return getattr(diffusers, family.pipeline)


def own_settings(place: Path, defaults: FamilyDefaults) -> tuple[FamilyDefaults, bool]:
    """A family's defaults with the base's own on top, and whether the base knows one framing only, from the
    `qrlora.json` in its folder if there is one: {"defaults": {"train": {...}, "sample": {...}}, "framing": "plain"}.
    Bases in the package know one framing only."""
    path, plain = place / "qrlora.json", place.parent == BUILT_IN
    if not path.is_file():
        return defaults, plain
    settings = read_json(path)
    try:
        return defaults.revised(settings.get("defaults", {})), plain or settings.get("framing") == "plain"
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
