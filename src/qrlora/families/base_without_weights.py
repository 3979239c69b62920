"""A base model without its weights: every shape, on the meta device or filled with random numbers."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..built_in_bases import built_in_bases, installation_hint
from ..image_size import ImageSize, height_and_width
from ..json_objects import read_json_object
from . import quantization
from .base_location import locate_base
from .base_model import Base
from .base_settings import BaseSettings, read_base_settings
from .component_checks import check_model_config, check_token_limit, check_vae_channels
from .condition import Condition
from .family import TokenLimits
from .family_table import FAMILIES, family_of_folder
from .library_messages import config_errors_in_one_line, libraries_silenced
from .model_dtype import is_kept_in_float32
from .pipeline_folder import index_settings
from .pipeline_steps import latent_channels, pixels_per_latent
from .public_configs import PUBLIC, PublicBase, near_public_names


def blank_base(name: str) -> tuple[Base, dict[str, nn.Module], TokenLimits]:
    """A base on the meta device, from its configuration alone: no weight is fetched, read or made.

    Args:    name: a name of PUBLIC or its hub name, a built-in name, or a local folder of a diffusers pipeline.
    Returns: the base, whose text encoders and VAE are absent; those, by component, on the meta device too; and the most
             tokens that its tokenizers take.
    Raises:  OSError: no such base; a hub name that PUBLIC does not have, since it would have to be fetched.
             ValueError: not of a known family, or a single file.
    """
    public = next((x for short, x in PUBLIC.items() if name in (short, x.hub)), None)
    if not public and name not in built_in_bases() and not Path(name).expanduser().exists():
        if hint := installation_hint(name):
            raise FileNotFoundError(hint)
        hint = f"did you mean {' or '.join(near_public_names(name))}? " if near_public_names(name) else ""
        known = f"{hint}Known by heart are {', '.join(PUBLIC)}; else give a built-in name or a local folder"
        raise FileNotFoundError(f"no base {name!r}: {known}")
    place = Path() if public else locate_base(name)
    if place.is_file():
        raise ValueError(f"{name} is one file: estimate its kind by name ({', '.join(PUBLIC)})")
    with config_errors_in_one_line(name):
        return _blank_base_from_configs(name, place, public)


def _blank_base_from_configs(
    name: str, place: Path, public: PublicBase | None
) -> tuple[Base, dict[str, nn.Module], TokenLimits]:
    """`blank_base`, a base without weights, of a place that is there."""
    configs = public or _configs_of_pipeline_folder(place)
    family = next(x for x in FAMILIES.values() if configs.pipeline in (x.pipeline, *x.other_pipelines))
    with libraries_silenced(), torch.device("meta"):
        model = _model_from_config(configs.model_config)
        spare = {name: _text_encoder_from_config(x).eval() for name, x in configs.text_encoders.items()}
        vae = spare["vae"] = _model_from_config(configs.vae).eval()
    scheduler = SimpleNamespace(config=_model_from_config(configs.scheduler).config)
    pixels = pixels_per_latent(vae.config)
    pipe = SimpleNamespace(
        **{family.component: model},
        scheduler=scheduler,
        vae_scale_factor=pixels,
        vae_scale_factor_spatial=pixels,
        patch_size=model.config.get("patch_size"),
        config=configs.settings,
    )
    check_model_config(model.config, family)
    check_vae_channels(pipe, family, latent_channels(vae.config))
    own = BaseSettings(dataclasses.replace(family.defaults, **family.default_overrides(pipe)))
    if not public:
        own = read_base_settings(place, own.defaults)
    limits = TokenLimits() if public else _token_limits(place, configs)
    return Base(pipe, family, name, **own._asdict()), spare, limits


def blank_example(
    base: Base, resolution: ImageSize, tokens: TokenLimits, rows: int, device: torch.device | str
) -> tuple[Tensor, Any]:
    """Random latents (rows, c, h, w) float32 and a random condition in the model's dtype, of the shapes that an image
    of `resolution` pixels has; on the meta device shapes alone."""
    height, width = (pixels // base.pixels_per_latent for pixels in height_and_width(resolution))
    shapes = base.family.input_shapes(base.pipe, (height, width), tokens)
    own = (x for x in base.model.named_parameters() if "lora_" not in x[0] and not is_kept_in_float32(base.model, x[0]))
    dtypes = (parameter.dtype for _, parameter in own)
    dtype = next(x for x in dtypes if x.is_floating_point)  # 4-bit weights are stored as whole numbers
    drawn = {name: torch.randn(rows, *shape[1:], device=device) for name, shape in shapes.items()}
    latents = drawn.pop("latents")
    return latents, Condition({k: x if k == "guidance" else x.to(dtype) for k, x in drawn.items()})


def materialise(model: nn.Module, device: torch.device | str) -> None:
    """Memory on a device for a model on the meta device, filled in place: matrices N(0, 1 / inputs), so that states
    keep their size; norms 1, biases 0. No copy in another dtype is made."""
    model.to_empty(device=device)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        _fill_randomly(name, tensor)
    _fill_tables(model, device)


def materialise_quantised(base: Base, quantize: str, device: torch.device) -> None:
    """As `materialise`, one tensor after another by the library that would quantise a checkpoint; no second copy is
    made. Each time that an original weight is asked for it is drawn anew."""
    shapes = {name: (tuple(x.shape), x.dtype) for name, x in base.model.state_dict().items()}

    def draw(name: str) -> Tensor:
        shape, dtype = shapes[name]
        return _fill_randomly(name, torch.empty(shape, dtype=dtype, device=device))

    with libraries_silenced():
        quantization.fill_quantised(base.model, draw, quantize, device)
    _fill_tables(base.model, device)
    base.original = lambda layer: draw(f"{layer}.weight")


def _fill_tables(model: nn.Module, device: torch.device | str) -> None:
    """Fill with zeros what no state dict holds, such as tables of rotations: plain tensors, lists of them, and buffers
    that are not saved."""

    def filled(x: Any) -> Any:
        return torch.zeros(x.shape, dtype=x.dtype, device=device) if isinstance(x, Tensor) and x.is_meta else x

    for module in model.modules():
        for name, x in [*vars(module).items(), *module.named_buffers(recurse=False)]:
            if isinstance(x, Tensor) and x.is_meta:
                setattr(module, name, filled(x))
            elif isinstance(x, list):
                x[:] = map(filled, x)


def buffers_and_tables(model: nn.Module) -> list[Tensor]:
    """Tensors of a model beside its parameters: buffers, and plain ones, also in lists, such as Qwen-Image's tables of
    rotations, which its first call moves to the device."""
    plain = (x for module in model.modules() for value in vars(module).values() for x in _as_list(value))
    return [*model.buffers(), *(x for x in plain if isinstance(x, Tensor))]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@torch.no_grad()
def _fill_randomly(name: str, tensor: Tensor) -> Tensor:
    """A weight of a base without weights, filled in place: see `materialise`."""
    if tensor.ndim > 1:
        return tensor.normal_(std=1 / math.sqrt(tensor[0].numel()))
    return tensor.fill_(1.0 if name.endswith("weight") else 0.0)


def _configs_of_pipeline_folder(place: Path) -> PublicBase:
    """The configs in a pipeline's folder, of which a base without weights is made."""
    family = family_of_folder(place)
    texts = {
        p: read_json_object(place / p / "config.json")
        for p in family.text_encoders
        if (place / p / "config.json").is_file()
    }
    component, vae = (read_json_object(place / p / "config.json") for p in (family.component, "vae"))
    scheduler = read_json_object(place / "scheduler" / "scheduler_config.json")
    named = read_json_object(place / "model_index.json")["_class_name"]
    pipeline = named if named in family.other_pipelines else family.pipeline
    return PublicBase(str(place), pipeline, component, scheduler, texts, vae, index_settings(place))


def _token_limits(place: Path, configs: PublicBase) -> TokenLimits:
    """The token limits of the tokenizers in a folder; the public ones' without any, and where one has no end.

    Raises: ValueError: one takes more tokens than its text encoder.
    """
    lengths: dict[str, list[float]] = {"CLIP": [], "T5": []}
    for component, encoder in configs.text_encoders.items():
        name = component.replace("text_encoder", "tokenizer")
        path = place / name / "tokenizer_config.json"
        tokenizer = read_json_object(path) if path.is_file() else {}
        for kind in lengths:
            if kind in str(tokenizer.get("tokenizer_class")) and "model_max_length" in tokenizer:
                check_token_limit(
                    name, tokenizer["model_max_length"], component, {"max_position_embeddings": None, **encoder}
                )
                lengths[kind].append(tokenizer["model_max_length"])

    def most(kind: str, public: int) -> int:
        return int(min(lengths[kind] + [public]))

    return TokenLimits(most("CLIP", TokenLimits().clip), most("T5", TokenLimits().t5))


def _model_from_config(config: dict[str, Any]) -> Any:
    import diffusers

    return getattr(diffusers, config["_class_name"]).from_config(config)


def _text_encoder_from_config(config: dict[str, Any]) -> nn.Module:
    """A text encoder without weights, on the meta device."""
    import transformers

    values = {k: v for k, v in config.items() if k != "model_type"}
    kind = getattr(transformers, config["architectures"][0])
    return kind(kind.config_class(**values))
