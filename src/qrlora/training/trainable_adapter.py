"""The adapter being trained on the base's model, of a row of METHODS or of one of PEFT's own methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..adapter import Adapter, Header
from ..basis import Basis, cached_basis
from ..config import TrainConfig
from ..contrastive_directions import compute_contrast_directions
from ..families import Base
from ..initialisation_methods import METHODS, InitialFactors
from ..injection import adapter_names, detach, extract, frozen_factors, initialise, set_strengths, trainable_factors
from ..injection.initial_factors import initial_factors
from ..injection.peft_methods import PREFIX, initialise_peft, parse_peft_method
from ..training_example import TrainingExamples

ADAPTER_NAME = "learning"
"""Name of the adapter on the model while it is trained. Keys of checkpoints have it, so it stays."""


@dataclass(frozen=True)
class TrainableAdapter:
    """An adapter that sits on the base's model until `detach`."""

    factors: Mapping[str, nn.Parameter]
    """The trainable parameters by name."""
    frozen: Mapping[str, Tensor]
    """The adapter's other tensors by name."""
    start: dict[str, Any]
    """Of the basis that training starts from: "basis", its digest, or ""; "lost", its Basis.lost, or None."""
    reload: Callable[[], Any]
    """To be called after `factors` or `frozen` were changed from outside: the model reads their values again."""
    extract: Callable[[Header], Adapter]
    detach: Callable[[], None]


def prepare_adapter(
    base: Base,
    config: TrainConfig,
    examples: TrainingExamples,
    generator: torch.Generator,
    stage: Callable[[str, float], Any],
) -> Callable[[], TrainableAdapter]:
    """Compute the trainable adapter's initial factors. The returned function then injects it into the base's model."""
    assert config.rank is not None and config.targets is not None
    stage("computing the initial factors", 0.0)
    if config.method.startswith(PREFIX):
        return partial(_inject_peft_method, base, config)
    method, weights = METHODS[config.method], base.weights(config.targets)
    layers_done: list[str] = []

    def on_layer(layer: str) -> None:
        layers_done.append(layer)
        stage("finding the leading directions", len(layers_done) / len(weights))

    def leading() -> Basis:
        stage("finding the leading directions", 0.0)
        return cached_basis(weights, config.rank or 0, method.side or "", on_layer)

    def contrast() -> Mapping[str, Tensor]:
        on_contrast = partial(stage, "comparing with ordinary prompts")
        on_contrast(0.0)
        return compute_contrast_directions(base, config, examples, on_contrast)

    factors, basis = initial_factors(
        method,
        weights,
        config.rank,
        generator,
        config.orthogonal_slot,
        leading,
        contrast,
    )
    start = {"basis": basis.digest if basis else "", "lost": basis.lost if basis else None}
    return partial(_inject_method, base, factors, start)


def _inject_method(base: Base, factors: Mapping[str, InitialFactors], start: dict[str, Any]) -> TrainableAdapter:
    """Inject a trainable adapter of a row of METHODS."""
    try:
        initialise(base.model, factors, ADAPTER_NAME)
    except BaseException:
        _detach(base)
        raise
    return TrainableAdapter(
        trainable_factors(base.model, ADAPTER_NAME),
        frozen_factors(base.model, ADAPTER_NAME),
        start,
        reload=lambda: set_strengths(base.model, {ADAPTER_NAME: 1.0}),
        extract=lambda header: extract(base.model, ADAPTER_NAME, header),
        detach=lambda: _detach(base),
    )


def _inject_peft_method(base: Base, config: TrainConfig) -> TrainableAdapter:
    """Inject a trainable adapter of one of PEFT's own methods."""
    assert config.rank is not None and config.targets is not None
    kind, layers = parse_peft_method(config.method), list(base.target_layers(config.targets))
    peft = initialise_peft(base.model, layers, kind, config.rank, config.seed)
    start = {"basis": "", "lost": None}
    return TrainableAdapter(
        peft.trainable_factors(), peft.frozen_tensors(), start, lambda: None, peft.extract, peft.detach
    )


def _detach(base: Base) -> None:
    if ADAPTER_NAME in adapter_names(base.model):
        detach(base.model, ADAPTER_NAME)
