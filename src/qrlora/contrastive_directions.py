"""Directions that a lesson excites and ordinary pictures do not.

The leading directions of a weight carry what every prompt uses, so that what is learnt along them changes every
picture. Here Q is chosen by what reaches the layer instead: x from the lesson's picture and prompt, u from the same
picture under ordinary prompts, some of which hold the other role's trigger word. What is learnt along such directions
acts where the trigger is and hardly anywhere else.

Letters: i inputs of a layer, r rank, C_x, C_u (i, i) the mean of x x^T and of u u^T over all rows.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .config import TRIGGERS, TrainConfig
from .families import Base, Condition
from .linalg import leading_subspace
from .noising import noising_of
from .training_example import Example

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

CPU_ROOM = 4e9
"""Bytes for moments in the CPU's memory."""
WORK_SPACE = 48
"""Bytes for each entry of a moment while its directions are found: six matrices in float64."""

Moments = dict[str, Tensor]
"""{layer: C (i, i) float32}."""


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

    The moments of all layers at once would be larger than the base (57 GB of FLUX.1's): a group of layers is done at a
    time, each by the same noisy copies, so that no direction depends on the groups.

    Args: config: without None.  example: with the condition of `ordinary_prompts`.
          progress: called with the share done, 0..1.
    """
    assert config.rank is not None and config.targets is not None and config.times is not None
    layers = list(base.target_layers(config.targets))
    conditions = (example.condition.rows([0] * ROWS), example.ordinary)

    def found(some: Sequence[str]) -> list[Moments]:
        assert config.times is not None
        generator = torch.Generator().manual_seed(config.seed)
        return [moments(base, some, example.latents, x, config.times, generator) for x in conditions]

    leaders = shared_inputs(base, layers, example, config.times)
    modules: dict[str, Any] = {leader: base.model.get_submodule(leader) for leader in leaders.values()}
    sizes = {leader: module.weight.shape[1] for leader, module in modules.items()}
    directions: dict[str, Tensor] = {}
    for group in groups(sizes, room(base.device)):
        own, usual = found(group)
        for leader in group:
            directions[leader] = contrast_directions(own.pop(leader), usual.pop(leader), config.rank).cpu()
            progress(len(directions) / len(sizes))
    return {layer: directions[leader] for layer, leader in leaders.items()}


def room(device: torch.device) -> float:
    """Bytes that moments may take: half of what a GPU has free, CPU_ROOM elsewhere."""
    return torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else CPU_ROOM


def groups(sizes: Mapping[str, int], most: float) -> list[list[str]]:
    """Layers in groups whose moments take so many bytes at most, with the work space of the largest; in a group of its
    own a layer that alone takes more.

    Args: sizes: {layer: i}.
    """
    found: list[list[str]] = []
    taken = 0
    spare = WORK_SPACE * max(sizes.values()) ** 2
    for layer, i in sizes.items():
        if not found or taken + 2 * 4 * i**2 + spare > most:
            found.append([])
            taken = 0
        found[-1].append(layer)
        taken += 2 * 4 * i**2  # C_x and C_u in float32
    return found


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
    sums: Moments = {}

    def add(layer: str, x: Tensor) -> None:
        rows = x.flatten(0, -2).float()
        sums[layer] = sums.get(layer, 0) + rows.T @ rows / (len(rows) * len(condition))

    with reading(base.model, layers, add):
        _answers(base, latents, condition, times, generator)
    return sums


@torch.no_grad()
def shared_inputs(base: Base, layers: Sequence[str], example: Example, times: str) -> dict[str, str]:
    """{layer: the first layer that reads the very same tensor}: queries, keys and values often do."""
    leaders: dict[str, str] = {}
    alive: list[tuple[weakref.ref[Tensor], str]] = []

    def note(layer: str, x: Tensor) -> None:
        alive[:] = [(other, leader) for other, leader in alive if other() is not None]
        leaders[layer] = next((leader for other, leader in alive if other() is x), layer)
        if leaders[layer] == layer:
            alive.append((weakref.ref(x), layer))

    with reading(base.model, layers, note):
        _answers(base, example.latents, example.condition, times, torch.Generator().manual_seed(0))
    return {layer: leaders[layer] for layer in layers}


def _answers(base: Base, latents: Tensor, condition: Condition, times: str, generator: torch.Generator) -> None:
    """The model is asked about a noisy copy for each row of the condition."""
    noising, device = noising_of(base.pipe.scheduler.config, times=times), base.device
    for k in range(len(condition)):
        noise = torch.randn(latents.shape, generator=generator)
        time = noising.sample_time(1, generator)
        noisy = noising.add_noise(latents.to(device), noise.to(device), time)
        base.family.predict(base.model, noisy, time.to(device), condition.rows([k]).to(device))


@contextmanager
def reading(model: nn.Module, layers: Sequence[str], read: Callable[[str, Tensor], Any]) -> Iterator[None]:
    """(layer, its input) at every call of these layers, for the length of a `with`."""

    def note(layer: str) -> Callable[..., None]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            read(layer, arguments[0])

        return hook

    handles = [model.get_submodule(layer).register_forward_pre_hook(note(layer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
