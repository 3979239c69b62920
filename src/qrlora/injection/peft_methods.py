"""PEFT's other methods by name, `peft:KIND`, on a live model: what they have learnt, as the A and B of a plain LoRA.

Every kind is handled alike: its layer is put on by PEFT with PEFT's own defaults, learns, and is then measured. What a
linear layer answers to the unit vectors is its weight; less the base's, that is the update, whatever made it. Letters:
o outputs, i inputs, r rank.
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

from .. import extras
from ..adapter import Adapter, Header, Pair
from ..linalg import compress
from .apply_adapter import refuse_passed_by

PREFIX = "peft:"
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "dora": ("LORA", {"use_dora": True}),
    "rslora": ("LORA", {"use_rslora": True}),
}
"""Methods that PEFT has as a switch of another one."""
REFUSED = {
    **dict.fromkeys(
        ("prompt_tuning", "multitask_prompt_tuning", "p_tuning", "prefix_tuning", "cpt", "cartridge"),
        "it learns tokens of a language model, not layers",
    ),
    **dict.fromkeys(("adaption_prompt", "trainable_tokens"), "it is for language models"),
    **dict.fromkeys(("ln_tuning", "beft"), "it learns norms or biases, which no LoRA file can hold"),
    **dict.fromkeys(("adalora", "osf"), "it needs a training loop of its own"),
    **dict.fromkeys(("xlora", "poly"), "it mixes several adapters by the input"),
}
"""KIND -> why it cannot be a method here; of the others, a layer whose answer is not linear is refused when lifted."""
RANKLESS = ("oft",)
"""Kinds whose `r` is no rank (OFT's is a count of blocks)."""


@dataclass(frozen=True)
class PeftAdapter:
    """A kind of PEFT's that sits on a model and learns."""

    model: nn.Module
    tuner: nn.Module
    kind: str
    layers: Collection[str]
    brought: Mapping[str, Tensor]
    """{name: tensor} of the numbers that came with it onto the model."""

    def factors(self) -> dict[str, nn.Parameter]:
        """{name: parameter} of what learns, sorted by name."""
        return dict(sorted((name, p) for name, p in self.tuner.named_parameters() if p.requires_grad))

    def frozen(self) -> dict[str, Tensor]:
        """{name: tensor} of what came with it and does not learn, such as random projections. Whole numbers, which
        every machine draws alike, are left out."""
        return {name: x for name, x in self.brought.items() if not x.requires_grad and x.is_floating_point()}

    def extract(self, header: Header) -> Adapter:
        """The measured updates, each cut to rank 2 r; header.config says the relative error of the cut over all layers,
        and how many numbers were trained.

        Raises: ValueError: a layer that does not answer linearly; NaN or infinity.
        """
        pairs, lost, total = {}, 0.0, 0.0
        for layer in self.layers:
            update = measured(self.model.get_submodule(layer), f"{PREFIX}{self.kind}, {layer}")
            A, B, kept = compress(update, min(2 * header.rank, *update.shape))
            pairs[layer] = Pair(A.contiguous(), B.contiguous())
            energy = float(update.double().square().sum())
            lost, total = lost + (1 - kept) * energy, total + energy
        error = (lost / total) ** 0.5 if total else 0.0
        told = {"truncation_error": error, "trained": sum(p.numel() for p in self.factors().values())}
        return Adapter(pairs, dataclasses.replace(header, config={**header.config, **told}))

    def detach(self) -> None:
        """Take it off; the model's layers are the very ones that they were."""
        tuner: Any = self.tuner
        tuner.unload()
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config
        self.model.requires_grad_(False)


def check(method: str) -> str:
    """The KIND of `peft:KIND`. Raises ValueError: PEFT has no such kind, or it cannot be a method here;
    MissingExtra."""
    extras.require("peft", "peft", reason=f"method={method}")
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    kind = method.removeprefix(PREFIX).lower()
    known = sorted({*(x.value.lower() for x in PEFT_TYPE_TO_TUNER_MAPPING), *VARIANTS} - REFUSED.keys())
    if kind in REFUSED:
        raise ValueError(f"{PREFIX}{kind} cannot learn here: {REFUSED[kind]}")
    if kind not in known:
        near = difflib.get_close_matches(kind, known, n=1)
        way_out = f"did you mean {PREFIX}{near[0]}?" if near else f"there are: {', '.join(known)}"
        raise ValueError(f"PEFT has no method {kind!r} for layers; {way_out}")
    return kind


def initialise_peft(model: nn.Module, layers: Collection[str], kind: str, rank: int, seed: int) -> PeftAdapter:
    """Put a kind on a model's layers, with PEFT's defaults but for the rank, and alpha = rank where there is one.

    Raises: ValueError: there are adapters on the model; a quantised base; what PEFT says where it cannot.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
    from peft.utils import PeftType

    if hasattr(model, "peft_config"):
        raise ValueError(f"{PREFIX}{kind} needs a model without adapters: detach those that are on it")
    refuse_passed_by(model, layers)
    for layer in layers:
        weight = model.get_submodule(layer).weight
        if type(weight) is not nn.Parameter or not weight.is_floating_point():
            raise ValueError(f"{PREFIX}{kind} cannot learn on a quantised base: leave quantize empty")
    name, switches = VARIANTS.get(kind, (kind.upper(), {}))
    row = PeftType(name)
    config_of: Any = PEFT_TYPE_TO_CONFIG_MAPPING[row]
    own = {x.name: x.default for x in dataclasses.fields(config_of)}
    before = {id(x) for x in _tensors(model).values()}
    ranks = {x: rank for x in ("r", "lora_alpha", "alpha") if isinstance(own.get(x), int) and kind not in RANKLESS}
    gpus = range(torch.cuda.device_count())  # named, for fork_rng warns where there are several
    with warnings.catch_warnings(), torch.random.fork_rng(devices=gpus):
        warnings.simplefilter("ignore")  # advice on settings that nobody here can change
        torch.manual_seed(seed)
        try:
            config = config_of(target_modules=list(layers), **ranks, **switches)
            tuner = PEFT_TYPE_TO_TUNER_MAPPING[row](model, config, "learning")
        except (ValueError, TypeError, RuntimeError, AssertionError) as error:
            raise ValueError(f"{PREFIX}{kind} cannot be put on these layers: {error}") from error
    model.eval()
    brought = {key: x for key, x in sorted(_tensors(tuner).items()) if id(x) not in before}
    return PeftAdapter(model, tuner, kind, list(layers), brought)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """{name: tensor} of a model's parameters and buffers, each once."""
    return {**dict(model.named_buffers()), **dict(model.named_parameters())}


def measured(layer: Any, what: str) -> Tensor:
    """The update (o, i), float32 on the CPU, of a layer that PEFT has wrapped: its answers less the base layer's.

    Raises: ValueError: its answer is not linear in its input.
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
