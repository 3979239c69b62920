"""PEFT's other methods (`peft:dora`, `peft:oft`, ...) on a live model, and their updates as A and B of a plain LoRA.

Every kind is handled alike: PEFT injects its layers with PEFT's defaults, they are trained, and the update is measured:
a linear layer's outputs for the unit vectors are its weight, and that minus the base's weight is the update, however it
is parametrised. Letters: o outputs, i inputs, r rank.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import optional_dependencies
from ..adapter import Adapter, Header, Pair
from ..linalg import low_rank_factors
from .apply_adapter import refuse_bypassed_layers

PREFIX = "peft:"
SWITCHES: dict[str, tuple[str, dict[str, Any]]] = {
    "dora": ("LORA", {"use_dora": True}),
    "rslora": ("LORA", {"use_rslora": True}),
}
"""KIND -> PEFT's type and the switch of it, for methods that are a switch of another one."""
UNSUPPORTED_KINDS = {
    **dict.fromkeys(
        ("prompt_tuning", "multitask_prompt_tuning", "p_tuning", "prefix_tuning", "cpt", "cartridge"),
        "it learns tokens of a language model, not layers",
    ),
    **dict.fromkeys(("adaption_prompt", "trainable_tokens"), "it is for language models"),
    **dict.fromkeys(("ln_tuning", "beft"), "it learns norms or biases, which no LoRA file can hold"),
    **dict.fromkeys(("adalora", "osf"), "it needs a training loop of its own"),
    **dict.fromkeys(("xlora", "poly"), "it mixes several adapters by the input"),
}
"""KIND -> why it is refused. Of the others, a layer that is not linear in its input is refused by `extract`."""
KINDS_WITHOUT_RANK = ("oft",)
"""Kinds whose `r` is no rank (OFT's is a count of blocks)."""


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter of one of PEFT's methods in training on a model."""

    model: nn.Module
    tuner: nn.Module
    kind: str
    layers: Collection[str]
    added_tensors: Mapping[str, Tensor]
    """{name: tensor} of all parameters and buffers that PEFT has added to the model."""

    def trainable_factors(self) -> dict[str, nn.Parameter]:
        """{name: parameter} of the trainable parameters, sorted by name."""
        return dict(sorted((name, p) for name, p in self.tuner.named_parameters() if p.requires_grad))

    def frozen_tensors(self) -> dict[str, Tensor]:
        """{name: tensor} of the added tensors that are not trained, such as random projections. Integer ones, which are
        drawn alike on every machine, are left out."""
        return {name: x for name, x in self.added_tensors.items() if not x.requires_grad and x.is_floating_point()}

    def extract(self, header: Header) -> Adapter:
        """The measured updates, each truncated to rank 2 r. header.config gets the relative error of that over all
        layers, "truncation_error", and the number of trainable parameters, "trained".

        Raises: ValueError: a layer that is not linear in its input; NaN or infinity.
        """
        pairs, lost, total = {}, 0.0, 0.0
        for layer in self.layers:
            update = measure_update(self.model.get_submodule(layer), f"{PREFIX}{self.kind}, {layer}")
            A, B, kept = low_rank_factors(update, min(2 * header.rank, *update.shape))
            pairs[layer] = Pair(A.contiguous(), B.contiguous())
            squared_norm = float(update.double().square().sum())
            lost, total = lost + (1 - kept) * squared_norm, total + squared_norm
        error = (lost / total) ** 0.5 if total else 0.0
        entries = {"truncation_error": error, "trained": sum(p.numel() for p in self.trainable_factors().values())}
        return Adapter(pairs, dataclasses.replace(header, config={**header.config, **entries}))

    def detach(self) -> None:
        """Detach PEFT's adapter; the model has its original layers again."""
        tuner: Any = self.tuner
        tuner.unload()
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config
        self.model.requires_grad_(False)


def parse_peft_method(method: str) -> str:
    """The KIND of `peft:KIND`. Raises ValueError: PEFT has no such kind, or it cannot be a method here;
    MissingExtra."""
    optional_dependencies.require("peft", "peft", reason=f"method={method}")
    _, tuners = peft_tables()

    kind = method.removeprefix(PREFIX).lower()
    known = sorted({*(x.value.lower() for x in tuners), *SWITCHES} - UNSUPPORTED_KINDS.keys())
    if kind in UNSUPPORTED_KINDS:
        raise ValueError(f"{PREFIX}{kind} cannot learn here: {UNSUPPORTED_KINDS[kind]}")
    if kind not in known:
        near = difflib.get_close_matches(kind, known, n=1)
        hint = f"did you mean {PREFIX}{near[0]}?" if near else f"there are: {', '.join(known)}"
        raise ValueError(f"PEFT has no method {kind!r} for layers; {hint}")
    return kind


def peft_tables() -> tuple[Mapping[Any, Any], Mapping[Any, Any]]:
    """PEFT's own tables, {PeftType: class} of configurations and of tuners, which are not among its documented names
    (tests/test_library_internals.py)."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    return PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING


def initialise_peft(model: nn.Module, layers: Collection[str], kind: str, rank: int, seed: int) -> PeftAdapter:
    """Inject a kind into a model's layers, with PEFT's defaults except the rank, and alpha = rank where there is one.

    Raises: ValueError: the model has PEFT adapters; a quantised base; PEFT's own refusals.
    """
    from peft.utils import PeftType

    configs, tuners = peft_tables()
    if hasattr(model, "peft_config"):
        raise ValueError(f"{PREFIX}{kind} needs a model without adapters: detach those that are on it")
    refuse_bypassed_layers(model, layers)
    for layer in layers:
        weight = model.get_submodule(layer).weight
        if type(weight) is not nn.Parameter or not weight.is_floating_point():
            raise ValueError(f"{PREFIX}{kind} cannot learn on a quantised base: leave quantize empty")
    name, switches = SWITCHES.get(kind, (kind.upper(), {}))
    row = PeftType(name)
    config_of = configs[row]
    defaults = {x.name: x.default for x in dataclasses.fields(config_of)}
    before = {id(x) for x in _named_tensors(model).values()}
    ranks = {
        x: rank
        for x in ("r", "lora_alpha", "alpha")
        if isinstance(defaults.get(x), int) and kind not in KINDS_WITHOUT_RANK
    }
    gpus = range(torch.cuda.device_count())  # named, as fork_rng warns if there are several
    with warnings.catch_warnings(), torch.random.fork_rng(devices=gpus):
        warnings.simplefilter("ignore")  # advice on settings that cannot be changed here
        torch.manual_seed(seed)
        try:
            config = config_of(target_modules=list(layers), **ranks, **switches)
            tuner = tuners[row](model, config, "learning")
        except (ValueError, TypeError, RuntimeError, AssertionError) as error:
            raise ValueError(f"{PREFIX}{kind} cannot be put on these layers: {error}") from error
    model.eval()
    added_tensors = {key: x for key, x in sorted(_named_tensors(tuner).items()) if id(x) not in before}
    return PeftAdapter(model, tuner, kind, list(layers), added_tensors)


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """{name: tensor} of a model's parameters and buffers, each once."""
    return {**dict(model.named_buffers()), **dict(model.named_parameters())}


def measure_update(layer: Any, what: str) -> Tensor:
    """Measure the update (o, i), float32 on the CPU, of a layer that PEFT has wrapped, from its outputs and the base
    weight.

    Raises: ValueError: its output is not linear in its input.
    """
    layer = copy.deepcopy(layer).float()
    weight = layer.get_base_layer().weight.detach()
    size = weight.shape[1]
    probe = torch.randn(4, size, generator=torch.Generator().manual_seed(0)).to(weight)
    with torch.no_grad():
        nothing = layer(torch.zeros(1, size).to(weight))
        whole = (layer(torch.eye(size).to(weight)) - nothing).T
        answer = layer(probe) - nothing
    if torch.dist(answer, probe @ whole.T) > 1e-3 * answer.norm():
        raise ValueError(f"{what}: the layer does not answer linearly, so that no LoRA can hold what it has learnt")
    return (whole - weight).cpu()
