"""open_base: a base model from its folder or its one file, ready to train or sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..devices import choose_device, choose_dtype
from ..safetensors_files import Checkpoint
from . import component_checks, hub_download, quantization, single_file
from .base_location import own_settings, place_of
from .base_model import Base
from .family import Family
from .family_table import family_of_folder, family_of_tensors
from .library_messages import configured, one_clear_line, quiet, tell_start
from .pipeline_folder import check_parts, check_weights, files_of_part, needed_parts, read_json, without
from .weight_files import file_variant, variant_of


def open_base(
    name: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str = "",
    offload: bool = False,
    revision: str = "",
) -> Base:
    """A base model, ready to train or sample.

    Args:    name: a built-in name (see `built_in_bases`), a local folder of a diffusers pipeline, one `.safetensors`
             checkpoint, or a hub name OWNER/NAME. Files of the variant fp16 are read where they are and 16 bits are
             kept, or where there are no others.
             device: auto, or a torch device.  dtype: float32, bfloat16, float16, or auto, see `choose_dtype`.
             quantize: keep the linear layers of the trainable part as nf4, int8 or float8; "": in dtype.
             offload: every part waits on the CPU for its turn on the device; else the trainable part stays there once
             its first turn has come (`Base.on_device`).
             revision: branch, tag or commit of a hub's repository; OWNER/NAME@REVISION says the same.
    Raises:  OSError: it does not exist, may not be read or cannot be fetched.
             ValueError: not a base model of a known family; a device or dtype that is not there; a quantisation whose
             library or GPU is missing.
    """
    home = choose_device(device)
    numbers = choose_dtype(dtype, home)
    name = f"{name}@{revision}" if revision else str(name)
    with one_clear_line(name):
        quantization.check(quantize, home)
        place = place_of(name, numbers)
        one_file = Checkpoint.of(place) if place.is_file() else None
        family = family_of_tensors(place, one_file.places) if one_file else family_of_folder(place)
        held = [one_file] if one_file else map(Checkpoint.of, files_of_part(place, family, numbers))
        tell_start(name, held, home, numbers, quantize)
        with quiet():
            filled_on = home if quantize == "nf4" else torch.device("cpu")
            if one_file:
                pipe, original = _opened_file(one_file, family, numbers, quantize, filled_on)
            else:
                pipe, original = _opened_folder(place, family, numbers, quantize)
    pipe.to("cpu", silence_dtype_warnings=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    defaults, plain = own_settings(place, dataclasses.replace(family.defaults, **family.exceptions(pipe)))
    return Base(pipe, family, name, defaults, plain, original, home, offload)


def _opened_folder(
    place: Path, family: Family, dtype: torch.dtype, quantize: str
) -> tuple[Any, Callable[[str], Tensor] | None]:
    """A pipeline from its folder, and `Base.original`.

    Raises: ValueError: a part is not there.
    """
    with configured(place):
        check_parts(place, family)
        variant = file_variant(dtype, hub_download.names_in(place), needed_parts(place, family)) or ""
        absent, how = without(place, family), quantization.instructions(family.part, quantize, dtype)
        types = {"default": dtype, "vae": torch.float32}
        texts = {part: _part(place, part, dtype, variant) for part in family.text_parts if part not in absent}
        told = {**absent, **texts, **how, **_files(variant)}
        pipe = _pipeline(family).from_pretrained(str(place), torch_dtype=types, **told)
        for part in needed_parts(place, family):
            check_weights(place, part, getattr(pipe, part), variant)
    component_checks.check(pipe, family)
    if not quantize:
        return pipe, None
    quantization.keep_no_copies(getattr(pipe, family.part))
    return pipe, quantization.original_weights(place / family.part, variant)


def _opened_file(
    file: Checkpoint, family: Family, dtype: torch.dtype, quantize: str, device: torch.device
) -> tuple[Any, Callable[[str], Tensor] | None]:
    """A pipeline from one file, and `Base.original`; bitsandbytes needs a GPU as the device.

    A file's configs and tokenizers come from a folder of the same name beside it if there is one (`model/` beside
    `model.safetensors`), else diffusers fetches the family's once. Text encoders and VAE that the file lacks (the
    transformer alone, often) come from that folder too. The trainable part is filled on the device, weight by weight,
    once all else is known to be there.

    Raises: ValueError: a part is neither in the file nor in the folder.
    """
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    place, beside = file.path, file.path.with_suffix("")
    with configured(place):
        told = _from_beside(file, beside, family, dtype)
        if not told:  # named to diffusers, too, which would not know every spelling
            told = {"config": single_file.config_repository(file, family.respelt)}
        vae = {} if "vae" in told else single_file.own_vae(file, told["config"])
        config = single_file.config_file(told["config"], family.part)
        model, read = single_file.blank_part(file, read_json(config), dtype, family.respelt)
        try:
            pipe = _pipeline(family).from_single_file(
                str(place), torch_dtype=dtype, **told, **vae, **{family.part: model}
            )
        except SingleFileComponentError as error:
            lacking = str(error).strip().splitlines()[0]
            way_out = f"put a whole diffusers pipeline of its kind beside it, as the folder {beside}"
            raise ValueError(f"{place} is not a whole base model ({lacking}): {way_out}") from error
    component_checks.complete(pipe, family)
    pipe.register_modules(scheduler=component_checks.own_scheduler(file, family, pipe.scheduler))
    component_checks.check(pipe, family)
    quantization.fill(model, lambda name: read(name).to(device, dtype), quantize, device)
    return pipe, (lambda layer: read(f"{layer}.weight")) if quantize else None


def _from_beside(file: Checkpoint, beside: Path, family: Family, dtype: torch.dtype) -> dict[str, Any]:
    """What diffusers must be told of the folder beside a single file: that it holds the configs, which parts it is
    without, and the parts that are there and not in the file; of those it would find neither the VAE nor any encoder
    whose weights are `model.safetensors`."""
    if not (beside / "model_index.json").is_file():
        return {}
    if family_of_folder(beside) is not family:
        raise ValueError(f"{file.path} is a {family.name} base, the folder beside it, {beside}, is of another family")
    check_parts(beside, family)
    told: dict[str, Any] = {"config": str(beside), **without(beside, family)}
    for part, beginning in {**family.text_parts, "vae": single_file.VAE_BEGINNINGS}.items():
        in_file = any(name.startswith(beginning) for name in file.places)
        if part not in told and not in_file and any((beside / part).glob("*.safetensors")):
            variant = file_variant(dtype, hub_download.names_in(beside), [part]) or ""
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
