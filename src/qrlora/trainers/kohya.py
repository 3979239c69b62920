"""QR-LoRA in sd-scripts and musubi-tuner: their own network, of a class that is theirs with two methods overridden.

Keys, ranks by block or name, LoRA+, dropouts, hashes and metadata stay the trainer's. Written against sd-scripts of
2026 (networks/lora*.py) and musubi-tuner 0.3.4. Letters: o outputs, i inputs, r rank, A (r, i), B (o, r), W (o, i).
"""

import functools
import importlib.metadata
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .freeze_lora import AdaptedLayer, freeze_layers

MAKERS = (
    "create_network",
    "create_arch_network",
    "create_network_from_weights",
    "create_arch_network_from_weights",
)
OVERRIDDEN = ("apply_to", "apply_max_norm_regularization")
BESIDE_A_AND_B = ("lora_mid", "magnitude", "ggpo_beta")
"""What makes more of a LoRA than B A: Tucker's core, DoRA's lengths, GGPO's noise, which wants the gradient of A."""


class Frozen:
    """What comes before a trainer's network class."""

    text_encoder_loras: list[Any]
    unet_loras: list[Any]

    def apply_to(self, text_encoder: Any, unet: Any, apply_text_encoder: bool = True, apply_unet: bool = True) -> None:
        """kohya's apply_to, after the LoRAs that will be used have got their directions. Raises as `freeze_layers`
        does."""
        used = (self.text_encoder_loras if apply_text_encoder else []) + (self.unet_loras if apply_unet else [])
        freeze_layers([layer for lora in used for layer in layers_of_kohya_lora(lora)])
        super().apply_to(text_encoder, unet, apply_text_encoder, apply_unet)  # pyright: ignore

    def apply_max_norm_regularization(self, max_norm_value: float, device: Any) -> Any:
        """kohya's scaling of weights multiplies A and B by the same number; A gives its share to B and stays
        orthonormal."""
        pairs = [pair for lora in [*self.text_encoder_loras, *self.unet_loras] for pair in pairs_of(lora)]
        before = [down.weight.clone() for down, _ in pairs]
        result = super().apply_max_norm_regularization(max_norm_value, device)  # pyright: ignore
        with torch.no_grad():
            for (down, up), A in zip(pairs, before, strict=True):
                up.weight *= down.weight.norm() / A.norm()
                down.weight.copy_(A)
        return result


def frozen_module(theirs: ModuleType) -> dict[str, Any]:
    """kohya's network module with networks for training frozen: what `qrlora.networks.NAME` holds.

    Raises: AttributeError: it makes no networks.
    """
    makers = {name: _freezing_maker(getattr(theirs, name)) for name in MAKERS if hasattr(theirs, name)}
    if not makers:
        raise AttributeError(f"{theirs.__name__} makes no network: it has no {' or '.join(MAKERS)}")
    return {name: value for name, value in vars(theirs).items() if not name.startswith("__")} | makers


def _freezing_maker(make: Callable) -> Callable:
    """kohya's maker of networks, whose networks are Frozen, but for those that are only merged."""

    @functools.wraps(make)
    def made(*args: Any, **kwargs: Any) -> Any:
        """Make kohya's network, and freeze it if it is to be trained."""
        result = make(*args, **kwargs)
        network = result[0] if isinstance(result, tuple) else result  # sd-scripts gives the weights back, too
        if network is not None and not kwargs.get("for_inference"):
            check_kohya_network(network)
            network.__class__ = frozen_network_class(type(network))
        return result

    return made


@functools.cache
def frozen_network_class(theirs: type) -> type:
    """The frozen class of a class of kohya's networks, the same for every network: trainers know their network by it
    when they resume.

    Raises: ValueError: it lacks what is overridden, naming its version.
    """
    lacking = [name for name in OVERRIDDEN if not hasattr(theirs, name)]
    if lacking:
        what = f"{_class_and_version(theirs)} has no {lacking[0]}(), which qrlora overrides"
        raise ValueError(f"{what}; it knows sd-scripts of 2026 and musubi-tuner 0.3.4")
    return type(f"Frozen{theirs.__name__}", (Frozen, theirs), {})


def check_kohya_network(network: Any) -> None:
    """Raises ValueError: a network of kohya's trainers that is no plain LoRA's, naming its class and version."""
    for name in ("text_encoder_loras", "unet_loras"):
        if not hasattr(network, name):
            raise ValueError(
                f"{_class_and_version(network)} has no {name}: no network of plain LoRAs; use one of networks.lora..."
            )
        for lora in getattr(network, name):
            lacking = [x for x in ("lora_down", "lora_up", "org_module") if not hasattr(lora, x)]
            more = [x for x in BESIDE_A_AND_B if getattr(lora, x, None) is not None]
            if lacking or more:
                why = f"has no {lacking[0]}" if lacking else f"has {more[0]}"
                raise ValueError(
                    f"{_class_and_version(lora)} {why}: no plain LoRA, whose A could be frozen; leave it out"
                )


def pairs_of(lora: Any) -> Iterable[tuple[Any, Any]]:
    """Its layers of A and B: one pair, or one for each part of a fused layer that is split."""
    split = isinstance(lora.lora_down, nn.ModuleList)
    return zip(lora.lora_down, lora.lora_up, strict=True) if split else [(lora.lora_down, lora.lora_up)]


def layers_of_kohya_lora(lora: Any) -> list[AdaptedLayer]:
    """The layers of a LoRA of kohya's: one for each pair, with its part of the weight."""
    pairs = list(pairs_of(lora))
    if len(pairs) == 1:
        return [AdaptedLayer(lora.lora_name, *pairs[0], functools.partial(weight_of_kohya_module, lora.org_module))]
    heights = [len(up.weight) for _, up in pairs]

    def part(k: int) -> Tensor:
        return weight_of_kohya_module(lora.org_module).split(heights)[k]

    return [AdaptedLayer(f"{lora.lora_name}.{k}", *pair, functools.partial(part, k)) for k, pair in enumerate(pairs)]


def weight_of_kohya_module(module: Any) -> Tensor:
    """W (o, i) of kohya's original module, a linear layer or a convolution; of fp8 numbers in float32, times their
    scales if they have any.

    Scales, as kohya's fp8 layers keep them: `scale_weight` of shape (1,), (o, 1) or (o, blocks, 1) over the inputs.
    """
    W = module.weight.detach()
    if W.is_floating_point() and W.dtype.itemsize == 1:
        scale = getattr(module, "scale_weight", torch.ones(1, device=W.device)).float()
        W = (W.float().view(*scale.shape[:-1], -1) * scale).view(W.shape)
    return W.flatten(1)


def _class_and_version(thing: Any) -> str:
    """The class and module of an object of kohya's, with the version of the distribution if that tells one: sd-scripts
    does not."""
    kind = thing if isinstance(thing, type) else type(thing)
    distribution = kind.__module__.partition(".")[0]
    try:
        version = f"{distribution} {importlib.metadata.version(distribution)}"
    except importlib.metadata.PackageNotFoundError:
        version = "of no known version"
    return f"{kind.__module__}.{kind.__name__} ({version})"
