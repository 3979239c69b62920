"""Opening a base model, `open_base`: from its folder or its one file, ready to train or sample."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..devices import choose_device, choose_dtype
from ..json_objects import read_json_object
from ..safetensors_files import Checkpoint
from . import component_checks, hub_download, quantization, single_file
from .base_location import locate_base
from .base_model import Base
from .base_settings import read_base_settings
from .family import Family
from .family_table import family_of_folder, family_of_tensors
from .library_messages import config_errors_in_one_line, libraries_silenced, log_opened_base, opening_errors_in_one_line
from .pipeline_folder import (
    absent_components,
    check_component_weights,
    check_folder_components,
    needed_components,
    processors,
    weight_files_of_trainable_component,
)
from .text_processor import text_processor
from .weight_files import file_variant, variant_of


def open_base(
    name: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str = "",
    offload: bool = False,
    revision: str = "",
) -> Base:
    """Open a base model, ready to train or sample.

    Args:    name: a built-in name (see `built_in_bases`), a local folder of a diffusers pipeline, one `.safetensors`
             checkpoint, or a hub name OWNER/NAME. Files of the variant fp16 are read where they are and 16 bits are
             kept, or where there are no others.
             device: auto, or a torch device.  dtype: float32, bfloat16, float16, or auto, see `choose_dtype`.
             quantize: keep the linear layers of the trainable component as nf4, int8 or float8; "": in dtype.
             offload: every component is on the device only while it computes; else the trainable component stays
             there once it was needed (`Base.on_device`).
             revision: branch, tag or commit of a hub's repository; OWNER/NAME@REVISION says the same.
    Raises:  OSError: it does not exist, may not be read or cannot be fetched.
             ValueError: not a base model of a known family; a device or dtype that is not there; a quantisation whose
             library or GPU is missing.
    """
    execution_device = choose_device(device)
    weight_dtype = choose_dtype(dtype, execution_device)
    name = f"{name}@{revision}" if revision else str(name)
    with opening_errors_in_one_line(name):
        quantization.check_quantize(quantize, execution_device)
        place = locate_base(name, weight_dtype)
        one_file = Checkpoint.of(place) if place.is_file() else None
        family = family_of_tensors(place, one_file.places) if one_file else family_of_folder(place)
        held = (
            [one_file]
            if one_file
            else map(Checkpoint.of, weight_files_of_trainable_component(place, family, weight_dtype))
        )
        log_opened_base(name, held, execution_device, weight_dtype, quantize)
        with libraries_silenced():
            filled_on = execution_device if quantize == "nf4" else torch.device("cpu")
            if one_file:
                pipe, original = _open_single_file(one_file, family, weight_dtype, quantize, filled_on)
            else:
                pipe, original = _open_folder(place, family, weight_dtype, quantize)
    pipe.to("cpu", silence_dtype_warnings=True)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.requires_grad_(False).eval()
    settings = read_base_settings(place, dataclasses.replace(family.defaults, **family.default_overrides(pipe)))
    how = {"original": original, "execution_device": execution_device, "offload": offload}
    return Base(pipe, family, name, **settings._asdict(), **how)


def _open_folder(
    place: Path, family: Family, dtype: torch.dtype, quantize: str
) -> tuple[Any, Callable[[str], Tensor] | None]:
    """Open a pipeline from its folder, and `Base.original`.

    Raises: ValueError: a component is not there.
    """
    with config_errors_in_one_line(place):
        check_folder_components(place, family)
        variant = file_variant(dtype, hub_download.folder_files(place), needed_components(place, family)) or ""
        absent = absent_components(place, family)
        quantized = quantization.quantization_kwargs(family.component, quantize, dtype)
        types = {"default": dtype, "vae": torch.float32}
        present = [name for name in family.text_encoders if name not in absent]
        texts = {name: _open_component(place, name, dtype, variant) for name in present}
        kwargs = {**absent, **texts, **quantized, **_variant_kwargs(variant)}
        pipe = _pipeline_of_folder(family, place, torch_dtype=types, **kwargs)
        for component in needed_components(place, family):
            check_component_weights(place, component, getattr(pipe, component), variant)
    component_checks.check_pipeline_components(pipe, family)
    if not quantize:
        return pipe, None
    quantization.keep_no_copies(getattr(pipe, family.component))
    return pipe, quantization.original_weights(place / family.component, variant)


def _open_single_file(
    file: Checkpoint, family: Family, dtype: torch.dtype, quantize: str, device: torch.device
) -> tuple[Any, Callable[[str], Tensor] | None]:
    """Open a pipeline from one file, and `Base.original`; bitsandbytes needs a GPU as the device.

    A file's configs and tokenizers come from a folder of the same name beside it if there is one (`model/` beside
    `model.safetensors`), else diffusers fetches the family's once. Text encoders and VAE that the file lacks (the
    transformer alone, often) come from that folder too. The trainable component is filled on the device, weight by
    weight, once all else is known to be there. Of some families a file holds nothing but that component
    (Family.beside_a_folder).

    Raises: ValueError: a component is neither in the file nor in the folder.
    """
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    place, beside = file.path, file.path.with_suffix("")
    hint = f"put a whole diffusers pipeline of its kind beside it, as the folder {beside}"
    with config_errors_in_one_line(place), contextlib.ExitStack() as connection:
        kwargs = _kwargs_from_folder_beside(file, beside, family, dtype)
        if not kwargs and family.beside_a_folder:
            alone = f"{place} is a {family.name} {family.component} alone, which could be of several models"
            raise ValueError(f"{alone}: {hint}")
        if not kwargs:  # named for diffusers, too, which would not know every spelling
            connection.enter_context(hub_download.hub_or_cache())
            kwargs = {"config": single_file.config_repository(file, family.normalize_key)}
        vae = {} if "vae" in kwargs or family.beside_a_folder else single_file.vae_of_file(file, kwargs["config"])
        config = single_file.config_file(kwargs["config"], family.component)
        try:
            model, read = single_file.model_on_meta_device(file, read_json_object(config), dtype, family.normalize_key)
        except ValueError as error:
            raise ValueError(f"{error}; {family.served_models}") from error
        try:
            given = {"torch_dtype": dtype, **kwargs, **vae, family.component: model}
            if family.beside_a_folder:
                pipe = _pipeline_of_folder(family, Path(given.pop("config")), **given)
            else:
                pipe = _pipeline_class(family).from_single_file(str(place), **given)
        except SingleFileComponentError as error:
            lacking = str(error).strip().splitlines()[0]
            raise ValueError(f"{place} is not a whole base model ({lacking}): {hint}") from error
    single_file.fill_shared_embeddings(pipe, family)
    pipe.register_modules(scheduler=single_file.scheduler_of_file(file, family, pipe.scheduler))
    component_checks.check_pipeline_components(pipe, family)
    dtypes = {name: x.dtype for name, x in model.state_dict().items()}
    quantization.fill_quantised(model, lambda name: read(name).to(device, dtypes[name]), quantize, device)
    return pipe, (lambda layer: read(f"{layer}.weight")) if quantize else None


def _kwargs_from_folder_beside(file: Checkpoint, beside: Path, family: Family, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments for opening a single file with diffusers, from the folder beside it: where the configs are, which
    components it lacks, and the components that are there and not in the file; of those diffusers would find neither
    the VAE nor any encoder whose weights are `model.safetensors`."""
    if not (beside / "model_index.json").is_file():
        return {}
    if family_of_folder(beside) is not family:
        raise ValueError(f"{file.path} is a {family.name} base, the folder beside it, {beside}, is of another family")
    check_folder_components(beside, family)
    kwargs: dict[str, Any] = {"config": str(beside), **absent_components(beside, family)}
    for component, beginning in {**family.text_encoders, "vae": single_file.VAE_BEGINNINGS}.items():
        in_file = not family.beside_a_folder and any(name.startswith(beginning) for name in file.places)
        if component not in kwargs and not in_file and any((beside / component).glob("*.safetensors")):
            variant = file_variant(dtype, hub_download.folder_files(beside), [component]) or ""
            kwargs[component] = _open_component(
                beside, component, torch.float32 if component == "vae" else dtype, variant
            )
            check_component_weights(beside, component, kwargs[component], variant)
    return kwargs


def _open_component(place: Path, component: str, dtype: torch.dtype, variant: str) -> Any:
    """Open one model from the folder of a pipeline.

    Raises: ValueError: weights are missing, for which transformers would draw random weight_dtype and go on.
    """
    import diffusers
    import transformers

    library, kind = read_json_object(place / "model_index.json")[component]
    libraries = {"diffusers": diffusers, "transformers": transformers}
    if not hasattr(libraries.get(library), kind):
        raise ValueError(f"{place}: its {component} is of a class {library}.{kind}, which is not known")
    own = {variant_of(path.name) for path in (place / component).iterdir()}  # without the variant it is read plain
    kwargs = {"torch_dtype": dtype, "output_loading_info": True, **_variant_kwargs(variant if variant in own else None)}
    model, found = getattr(libraries[library], kind).from_pretrained(str(place / component), **kwargs)
    lacking = sorted(found["missing_keys"])
    if lacking:
        raise ValueError(f"its {component} lacks {len(lacking)} of its weights, such as {lacking[0]}: fetch it again")
    return model


def _pipeline_of_folder(family: Family, place: Path, **kwargs: Any) -> Any:
    """diffusers' pipeline of a folder. In place of a processor, which reads images, too, and asks for torchvision,
    it has one of words alone, as prompts here are; its tokenizer, if the pipeline calls it so."""
    words = {x: text_processor(place / x) for x in processors(place) if x not in kwargs}
    tokenizers = {name: x.tokenizer for name, x in words.items() if name.startswith("tokenizer")}
    # a class that cannot be had without torchvision is no class to diffusers' check: registered afterwards
    pipe = _pipeline_class(family, place).from_pretrained(
        str(place), **{**words, **dict.fromkeys(tokenizers)}, **kwargs
    )
    pipe.register_modules(**tokenizers)
    return pipe


def _variant_kwargs(variant: str | None) -> dict[str, Any]:
    """Arguments with which `from_pretrained` reads safetensors of a variant, or the plain ones."""
    return {"use_safetensors": True, "variant": variant or None}


def _pipeline_class(family: Family, folder: Path | None = None) -> Any:
    """diffusers' class to open a family's pipeline with, of several the one that a folder's index names."""
    import diffusers

    named = read_json_object(folder / "model_index.json").get("_class_name") if folder else None
    return getattr(diffusers, named if named in family.other_pipelines else family.pipeline)
