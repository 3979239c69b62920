"""A trainable component in one file, in the names of its original release: there q, k and v are often one tensor, and
some halves stand in the other order.

diffusers' own conversion is run on the numbers of rows in place of the rows: what it makes of them tells which rows of
which tensors each weight is made of. So every weight can be read alone, as often as it is needed. It is run once
more on the rows in another numbering: a conversion that computes, rather than moves, gives itself away.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..safetensors_files import FLOATS, Checkpoint, TensorLocation, read_rows
from .family import Family
from .model_dtype import cast_model

VAE_BEGINNINGS = ("first_stage_model.", "vae.")
"""How the names of a VAE's tensors begin in single-file checkpoints."""


class TensorRows(NamedTuple):
    """Rows first..last - 1 of a tensor in the file."""

    tensor: str
    first: int
    last: int


def model_on_meta_device(
    file: Checkpoint, config: Mapping[str, Any], dtype: torch.dtype, normalize_key: Callable[[str], str] = str
) -> tuple[nn.Module, Callable[[str], Tensor]]:
    """A model on the meta device, and what reads one of its weights: (name) -> its value as the file stores it, in
    the CPU's memory. From the file's header alone it is known that every weight is there.

    Args:    config: the model's config, with its class as "_class_name".  normalize_key: see Family.
    Raises:  ValueError: tensors are missing, left over, of other shapes, or no plain floating-point numbers.
    """
    import diffusers
    from accelerate import init_empty_weights

    kind, path = config.get("_class_name"), file.path
    convert = conversion_of(kind)
    if kind is None or convert is None:
        raise ValueError(f"{path}: its configuration is of class {kind!r}, which is not read from one file")
    with init_empty_weights():
        model = getattr(diffusers, kind).from_config(config)
    held = {normalize_key(name): place for name, place in file.places.items()}
    try:
        sources = _rows_of_weights(held, config, convert)
        shapes = {name: tuple(x.shape) for name, x in model.state_dict().items()}
        _check_rows(held, sources, shapes)
    except ValueError as error:
        raise ValueError(f"{path} is not a whole {kind} of this configuration: {error}") from error

    def read(name: str) -> Tensor:
        rows = read_rows(path, [(held[x.tensor], x.first, x.last) for x in sources[name]])
        return rows.reshape(shapes[name])

    return cast_model(model, dtype), read


def conversion_of(kind: Any) -> Callable[..., Mapping[str, Tensor]] | None:
    """diffusers' own conversion, (config=, checkpoint=) -> {weight: value}, of one file's names to those of a class;
    None: it has none. The table is not among diffusers' documented names."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    return SINGLE_FILE_LOADABLE_CLASSES.get(kind, {}).get("checkpoint_mapping_fn")


def config_repository(file: Checkpoint, normalize_key: Callable[[str], str] = str) -> str:
    """The hub name of the configs that diffusers' single-file loader chooses by names and shapes."""
    from diffusers.loaders.single_file_utils import fetch_diffusers_config

    shapes = {normalize_key(name): torch.empty(place.shape, device="meta") for name, place in file.places.items()}
    return fetch_diffusers_config(shapes)["pretrained_model_name_or_path"]


def config_file(source: str, component: str) -> Path:
    """The config of a component for a single file, in the folder of a pipeline or the hub's repository of that name.

    Raises: OSError: the hub cannot be reached, or is not allowed to send it.
    """
    from huggingface_hub import hf_hub_download

    if Path(source).is_dir():
        return Path(source) / component / "config.json"
    return Path(hf_hub_download(source, f"{component}/config.json"))


def vae_of_file(file: Checkpoint, source: str) -> dict[str, Any]:
    """{"vae": the VAE within a whole checkpoint, in float32 as every VAE}; nothing where the file has none.

    Args:    source: of the VAE's config, see `config_file`.
    """
    import diffusers

    if not any(name.startswith(VAE_BEGINNINGS) for name in file.places):
        return {}
    location = {"config": str(config_file(source, "vae").parents[1]), "subfolder": "vae"}
    return {"vae": diffusers.AutoencoderKL.from_single_file(str(file.path), torch_dtype=torch.float32, **location)}


def _rows_of_weights(
    held: Mapping[str, TensorLocation], config: Mapping[str, Any], convert: Callable[..., Mapping[str, Tensor]]
) -> dict[str, list[TensorRows]]:
    """For each weight the rows of the single file that it is made of, from top to bottom: {weight: rows}.

    Args:    convert: (config=, checkpoint=) -> {weight: value}, diffusers' own; it takes rows apart, joins and moves
             them, and looks at how many there are.
    Raises:  ValueError: the conversion asks for what is not there.
    """
    names, starts, numbers, following = list(held), [], {}, 0
    for name, place in held.items():
        count = place.shape[0] if place.shape else 1
        column = torch.arange(following, following + count)
        numbers[name] = column.view(-1, *[1] * (len(place.shape) - 1))  # as deep as the tensor; a column is enough
        starts.append(following)
        following += count + 1  # a gap: rows of two tensors never follow each other
    shuffled = torch.randperm(following, generator=torch.Generator().manual_seed(0))
    again = {name: shuffled[column] for name, column in numbers.items()}
    try:
        made = convert(config=config, checkpoint=numbers)
        once_more = convert(config=config, checkpoint=again)
    except KeyError as error:
        raise ValueError(f"it has no tensor {error}") from error
    except IndexError as error:
        raise ValueError("it has no block of a kind") from error
    except RuntimeError as error:  # a tensor that cannot be split into its components, which torch says in one line
        raise ValueError(str(error)) from error

    for name, column in made.items():
        other = once_more.get(name)
        if column is None or not len(column):
            continue
        moved = not column.is_floating_point() and 0 <= int(column.min()) and int(column.max()) < following
        if not moved or other is None or not torch.equal(shuffled[column], other):
            raise ValueError(f"diffusers' conversion computes {name} instead of moving rows, which is not read so")

    def rows(column: Tensor) -> list[TensorRows]:
        """The rows of the single file whose numbers a converted column holds."""
        flat = column.flatten()
        breaks = (flat.diff() != 1).nonzero().flatten() + 1
        runs = [(int(x[0]), int(x[-1])) for x in flat.tensor_split(breaks.tolist())]
        which = [bisect(starts, first) - 1 for first, _ in runs]
        return [TensorRows(names[k], a - starts[k], b + 1 - starts[k]) for k, (a, b) in zip(which, runs, strict=True)]

    return {name: rows(column) for name, column in made.items() if column is not None and len(column)}


def _check_rows(
    held: Mapping[str, TensorLocation],
    sources: Mapping[str, Sequence[TensorRows]],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Every weight of the model has its rows in the single file, and nothing is left over that says how they are to be
    read.

    Raises: ValueError, with a name and how many there are.
    """
    lacking = sorted(shapes.keys() - sources.keys())
    if lacking:
        raise ValueError(f"{len(lacking)} of {len(shapes)} weights are missing, such as {lacking[0]}")
    foreign = sorted(sources.keys() - shapes.keys())
    if foreign:
        raise ValueError(f"{len(foreign)} weights have no place in it, such as {foreign[0]}")
    for name, rows in sources.items():
        found = (sum(x.last - x.first for x in rows), *held[rows[0].tensor].shape[1:])
        folded = len(found) == 1 and found[0] == math.prod(shapes[name])  # a vector that holds several, as Krea 2's
        if found != shapes[name] and not folded:
            raise ValueError(f"{name} must be {shapes[name]}, the file has {found}")
    used = {x.tensor for rows in sources.values() for x in rows}
    strange = sorted(name for name in used if held[name].dtype not in FLOATS)
    if strange:
        kind = held[strange[0]].dtype
        raise ValueError(f"{len(strange)} tensors are no floating-point numbers, such as {strange[0]} ({kind})")
    layers = {name.rpartition(".")[0] for name in used} - {""}
    beside = sorted(name for name in held.keys() - used if name.rpartition(".")[0] in layers)
    if beside:
        raise ValueError(f"{len(beside)} tensors stand beside its weights that it does not know, such as {beside[0]}")


def scheduler_of_file(file: Checkpoint, family: Family, scheduler: Any) -> Any:
    """The scheduler, as a single file says that it was trained: see Family.scheduler_entries.

    Raises: ValueError: what the file says is not known here, or contradicts the folder beside it.
    """
    path, names = file.path, {name.removeprefix("model.diffusion_model.") for name in file.places}
    found, config = family.scheduler_entries(names, file.metadata), scheduler.config
    kind, other = found.get("prediction_type"), config.get("prediction_type")
    if kind == "epsilon" and other != kind:
        hint = "the file's metadata or scheduler_config.json in the folder beside it is wrong: make them agree"
        raise ValueError(f"{path} says that it predicts {kind}, its scheduler {other}: {hint}")
    foreign = found.keys() - config.keys()
    if foreign:
        raise ValueError(f"{path} needs a scheduler with {min(foreign)}, {type(scheduler).__name__} has none")
    return type(scheduler).from_config({**config, **found}) if found else scheduler


def fill_shared_embeddings(pipe: Any, family: Family) -> None:
    """T5's embedding goes by two names; where a single file has it under one, it gets the other.

    Raises: ValueError: a component lacks weights, with one of them.
    """
    for component in (*family.text_encoders, "vae"):
        model = getattr(pipe, component, None)
        if model is None:
            continue
        if getattr(model.config, "model_type", "") == "t5":
            both = (model.get_input_embeddings(), model.encoder.get_input_embeddings())
            model.set_input_embeddings(next((x for x in both if not x.weight.is_meta), both[0]))
        missing = [name for name, x in model.state_dict().items() if x.is_meta]
        if missing:
            raise ValueError(f"its {component} lacks {len(missing)} of its weights, such as {missing[0]}")
