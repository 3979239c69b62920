"""Directions that a lesson excites and ordinary pictures do not.

The leading directions of a weight carry what every prompt uses, so that what is learnt along them changes every
picture. Here Q is chosen by what reaches the layer instead: x from the lesson's picture and prompt, u from the same
picture under ordinary prompts, some of which hold the other role's trigger word. What is learnt along such directions
acts where the trigger is and hardly anywhere else.

Letters: i inputs of a layer, r rank, C_x, C_u (i, i) the mean of x x^T and of u u^T over all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .config import TRIGGERS, TrainConfig
from .data import Example
from .families import Base, Condition
from .linalg import leading_subspace
from .noise import noising_of

RIDGE = 1e-3
"""rho: a direction counts as if ordinary rows had at least this share of their mean energy in it."""
ROWS = 48
"""Noisy copies of the picture, one for each ordinary prompt, and as many of the lesson's."""
THINGS = (
    "tiger face,shooting star,rocket,bird,palm tree,church,chocolate bar,radio,tractor,avocado,shirt,beetle,croissant,"
    "shoe,city,fountain pen,bullet train,rooster,water wave,maple leaf,magnifying glass,child,bus stop,piano,house"
).split(",")
STYLES = (
    "plain,sketch,blueprint,neon,pixel,sepia,halftone,oil,chalk,watercolor,mosaic,comic,charcoal,gold,ice,night"
).split(",")
"""Words of ordinary prompts. Their counts have no common divisor, so that they meet in ever other pairs."""

Moments = dict[str, Tensor]
"""{layer: C (i, i) float32}; one tensor for layers that read the same input."""


def ordinary_prompts(config: TrainConfig) -> list[str]:
    """ROWS prompts without the lesson's trigger; every third names the other role's instead of a thing or style."""
    other = TRIGGERS["style" if config.role == "content" else "content"]
    prompts = []
    for k in range(ROWS):
        thing, style = THINGS[k % len(THINGS)], STYLES[k % len(STYLES)]
        if k % 3 == 2 and other != config.trigger:
            thing, style = (thing, other) if config.role == "content" else (other, style)
        prompts.append(f"a {thing} in {style} style")
    return prompts


def contrasted(
    base: Base, config: TrainConfig, example: Example, progress: Callable[[float], Any] = lambda _: None
) -> dict[str, Tensor]:
    """{layer: Q (i, r)} of the target layers: the span of the r leading generalised eigenvectors of (C_x, C_u).

    Args: config: without None.  example: with the condition of `ordinary_prompts`.
          progress: called with the share done, 0..1.
    """
    assert config.rank is not None and config.targets is not None and config.times is not None
    layers = list(base.target_layers(config.targets))
    generator = torch.Generator().manual_seed(config.seed)
    conditions = (example.condition.rows([0] * ROWS), example.ordinary)
    own, usual = (moments(base, layers, example.latents, x, config.times, generator) for x in conditions)
    found: dict[tuple[int, int], Tensor] = {}
    for k, layer in enumerate(layers):
        pair = (id(own[layer]), id(usual[layer]))
        if pair not in found:
            found[pair] = contrast_directions(own[layer], usual[layer], config.rank).cpu()
        progress((k + 1) / len(layers))
    return {layer: found[id(own[layer]), id(usual[layer])] for layer in layers}


def contrast_directions(own: Tensor, usual: Tensor, rank: int, ridge: float = RIDGE) -> Tensor:
    """Orthonormal Q of the span of the leading r solutions of C_x q = lambda (C_u + rho tr(C_u) / i) q.

    With L L^T the right-hand matrix: q = L^-T v, v the leading eigenvectors of L^-1 C_x L^-T. No other span of its size
    holds as much of x measured in units of u.

    Args:    own, usual: C_x, C_u (i, i).
    Returns: (i, r) float32.
    Raises:  ValueError: rank outside 1..i; NaN or infinity.
    """
    size = len(usual)
    dampened = usual.double() + ridge * usual.double().trace() / size * torch.eye(size, device=usual.device)
    L = torch.linalg.cholesky(dampened)
    half = torch.linalg.solve_triangular(L, own.double(), upper=False)
    whitened = torch.linalg.solve_triangular(L, half.T, upper=False)
    v = leading_subspace((whitened + whitened.T).float() / 2, rank)
    q = torch.linalg.solve_triangular(L.T, v.double(), upper=True)
    return torch.linalg.qr(q / q.norm(dim=0)).Q.float().contiguous()


@torch.no_grad()
def moments(
    base: Base, layers: Sequence[str], latents: Tensor, condition: Condition, times: str, generator: torch.Generator
) -> Moments:
    """The mean of x x^T over all rows that reach each layer while the model answers, noise and times as in training.

    Args: latents: (1, c, h, w).  condition: one row for each noisy copy.  times: row of noise.TIMES.
    """
    noising, device = noising_of(base.pipe.scheduler.config, times=times), base.device
    leaders: dict[str, str] = {}
    sums: Moments = {}
    with reading(base.model, layers) as inputs:
        for k in range(len(condition)):
            noise = torch.randn(latents.shape, generator=generator)
            time = noising.sample_time(1, generator)
            noisy = noising.add_noise(latents.to(device), noise.to(device), time)
            base.family.predict(base.model, noisy, time.to(device), condition.rows([k]).to(device))
            leaders = leaders or _leaders(inputs)
            for layer in set(leaders.values()):
                rows = inputs[layer].flatten(0, -2).float()
                sums[layer] = sums.get(layer, 0) + rows.T @ rows / (len(rows) * len(condition))
    return {layer: sums[leader] for layer, leader in leaders.items()}


def _leaders(inputs: Mapping[str, Tensor]) -> dict[str, str]:
    """{layer: the first layer that got the very same tensor}: queries, keys and values often do."""
    first: dict[int, str] = {}
    return {layer: first.setdefault(id(x), layer) for layer, x in inputs.items()}


@contextmanager
def reading(model: nn.Module, layers: Sequence[str]) -> Iterator[Mapping[str, Tensor]]:
    """{layer: the input that it was last called with}, for the length of a `with`."""
    inputs: dict[str, Tensor] = {}

    def note(layer: str) -> Callable[..., None]:
        return lambda _module, arguments: inputs.__setitem__(layer, arguments[0])

    handles = [model.get_submodule(layer).register_forward_pre_hook(note(layer)) for layer in layers]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()
