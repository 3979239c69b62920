"""A base model without its weights: every shape, on the meta device or filled with random numbers."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from . import FAMILIES, family_of_folder, own_settings, place_of, read_json
from .messages import quiet
from .public import PUBLIC, Public
from .record import Base, Condition


def blank_base(name: str) -> tuple[Base, dict[str, int], int]:
    """A base on the meta device, from its configuration alone: no weight is fetched, read or made.

    Args:    name: a name of PUBLIC or its hub name, a built-in name, or a local folder of a diffusers pipeline.
    Returns: the base, whose text encoders and VAE are absent; how many numbers those have, by component; and the most
             tokens that its T5 takes.
    Raises:  OSError: no such base; a hub name that PUBLIC does not have, since it would have to be fetched.
             ValueError: not of a known family, or a single file.
    """
    public = next((x for short, x in PUBLIC.items() if name in (short, x.hub)), None)
    if not public and "/" in name and not Path(name).expanduser().exists():
        known = ", ".join(PUBLIC)
        raise FileNotFoundError(f"{name} is no local folder, nor among the hub's that are known by heart: {known}")
    place = Path() if public else place_of(name)
    if place.is_file():
        raise ValueError(f"{name} is one file: rehearse its kind by name ({', '.join(PUBLIC)})")
    told = public or _of_folder(place)
    family = next(x for x in FAMILIES.values() if x.pipeline == told.pipeline)
    with quiet(), torch.device("meta"):
        model = _built(told.part)
        spare = {part: _count(_encoder(config)) for part, config in told.text_parts.items()}
        spare["vae"] = _count(_built(told.vae))
    scheduler = SimpleNamespace(config=_built(told.scheduler).config)
    pixels = 2 ** (len(told.vae["block_out_channels"]) - 1)
    pipe = SimpleNamespace(
        **{family.part: model}, scheduler=scheduler, vae_scale_factor=pixels, patch_size=model.config.get("patch_size")
    )
    defaults, plain = dataclasses.replace(family.defaults, **family.exceptions(pipe)), False
    if not public:
        defaults, plain = own_settings(place, defaults)
    return Base(pipe, family, name, defaults, plain), spare, 512 if public else _most_tokens(place)


def blank_example(base: Base, resolution: int, words: int, rows: int, device: torch.device | str) -> tuple[Tensor, Any]:
    """Random latents (rows, c, h, w) float32 and a random condition in the model's dtype, of the shapes that a picture
    of `resolution` pixels has; on the meta device shapes alone."""
    shapes = base.family.shapes(base.model.config, resolution // base.pipe.vae_scale_factor, words)
    dtype = next(p.dtype for n, p in base.model.named_parameters() if "lora_" not in n)
    drawn = {name: torch.randn(rows, *shape[1:], device=device) for name, shape in shapes.items()}
    latents = drawn.pop("latents")
    return latents, Condition({k: x if k == "guidance" else x.to(dtype) for k, x in drawn.items()})


def materialise(model: nn.Module, device: torch.device | str) -> None:
    """Memory on a device for a model on the meta device, filled in place: matrices N(0, 1 / inputs), so that states
    keep their size; norms 1, biases 0. No copy in another dtype is made."""
    model.to_empty(device=device)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.ndim > 1:
                tensor.normal_(std=1 / math.sqrt(tensor[0].numel()))
            else:
                tensor.fill_(1.0 if name.endswith("weight") else 0.0)


def _of_folder(place: Path) -> Public:
    """What the configs in a pipeline's folder tell."""
    family = family_of_folder(place)
    texts = {
        p: read_json(place / p / "config.json") for p in family.text_parts if (place / p / "config.json").is_file()
    }
    part, vae = (read_json(place / p / "config.json") for p in (family.part, "vae"))
    scheduler = read_json(place / "scheduler" / "scheduler_config.json")
    return Public(str(place), family.pipeline, part, scheduler, texts, vae)


def _most_tokens(place: Path) -> int:
    """Of the T5 tokenizer in a folder; 512, more than any family asks for, without one."""
    configs = [read_json(path) for path in sorted(place.glob("tokenizer*/tokenizer_config.json"))]
    lengths = [int(x.get("model_max_length", 512)) for x in configs if "T5" in str(x.get("tokenizer_class"))]
    return min(lengths, default=512)


def _built(config: dict[str, Any]) -> Any:
    import diffusers

    return getattr(diffusers, config["_class_name"]).from_config(config)


def _encoder(config: dict[str, Any]) -> nn.Module:
    import transformers

    values = {k: v for k, v in config.items() if k != "model_type"}
    kind = getattr(transformers, config["architectures"][0])
    return kind(kind.config_class(**values))


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
