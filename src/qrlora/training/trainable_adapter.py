"""What sits on a model and learns: a row of METHODS, or one of PEFT's own methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..adapter import Adapter, Header
from ..basis import cached_basis
from ..config import TrainConfig
from ..contrastive_directions import contrasted
from ..families import Base
from ..injection import adapter_names, detach, extract, frozen_factors, initialise, set_strengths, trainable_factors
from ..injection.initial_factors import initial_factors
from ..injection.peft_methods import PREFIX, check, initialise_peft
from ..methods import METHODS
from ..training_example import Example

NAME = "learning"
"""Name of the adapter on the model while it learns."""


@dataclass(frozen=True)
class TrainableAdapter:
    """On the base's model until `detach`."""

    factors: Mapping[str, nn.Parameter]
    """What learns, by name."""
    frozen: Mapping[str, Tensor]
    """What else it brought onto the model."""
    start: dict[str, Any]
    """Of the basis that it starts from: "basis", its digest, "" without one; "lost", what it lacks (Basis.lost), None
    without one."""
    refresh: Callable[[], Any]
    """Has the model look at the numbers in `factors` and `frozen` anew, after they were changed from outside."""
    extract: Callable[[Header], Adapter]
    detach: Callable[[], None]


def prepared(
    base: Base, config: TrainConfig, example: Example, generator: torch.Generator, stage: Callable[[str, float], Any]
) -> Callable[[], TrainableAdapter]:
    """What can be computed before the model is touched; call the answer to put the learner on."""
    assert config.rank is not None and config.targets is not None
    if config.method.startswith(PREFIX):
        kind, layers, rank = check(config.method), list(base.target_layers(config.targets)), config.rank

        def foreign() -> TrainableAdapter:
            put = initialise_peft(base.model, layers, kind, rank, config.seed)
            start = {"basis": "", "lost": None}
            return TrainableAdapter(put.factors(), put.frozen(), start, lambda: None, put.extract, put.detach)

        return foreign
    method, weights = METHODS[config.method], base.weights(config.targets)
    done: list[str] = []

    def count(layer: str) -> None:
        done.append(layer)
        stage("finding the leading directions", len(done) / len(weights))

    starts, basis = initial_factors(
        method,
        weights,
        config.rank,
        generator,
        config.slot or 0,
        leading=lambda: cached_basis(weights, config.rank or 0, method.side or "", count),
        contrast=lambda: contrasted(base, config, example, partial(stage, "comparing with ordinary prompts")),
    )
    start = {"basis": basis.digest if basis else "", "lost": basis.lost if basis else None}

    def own() -> TrainableAdapter:
        try:
            initialise(base.model, starts, NAME)
        except BaseException:
            _detach(base)
            raise
        return TrainableAdapter(
            trainable_factors(base.model, NAME),
            frozen_factors(base.model, NAME),
            start,
            refresh=lambda: set_strengths(base.model, {NAME: 1.0}),
            extract=lambda header: extract(base.model, NAME, header),
            detach=lambda: _detach(base),
        )

    return own


def _detach(base: Base) -> None:
    if NAME in adapter_names(base.model):
        detach(base.model, NAME)
