"""Frozen directions of the method qr-contrast: input directions active for the trigger prompt, not for other prompts.

Every prompt uses the leading directions of a weight, so that training along them changes every image. Here Q is chosen
by the layer's inputs instead: x under the training prompt, u for the same noisy image under ordinary prompts, some of
which hold the other role's trigger word. An adapter along such directions acts where its trigger is, and hardly
anywhere else.

Letters: i inputs of a layer, r rank, C_x, C_u (i, i) the second moments, the mean of x x^T and of u u^T over all rows.
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
from .linalg import leading_subspace, to_double
from .noising import noising_of
from .training_example import TrainingExamples

RIDGE = 1e-3
"""rho: C_u is regularised by this fraction of its mean eigenvalue."""
NUM_PROMPTS = 48
"""Ordinary prompts, one noisy copy of an image for each, and as many copies under the images' own captions."""
SUBJECTS = (
    "tiger face,shooting star,rocket,bird,palm tree,church,chocolate bar,radio,tractor,avocado,shirt,beetle,croissant,"
    "shoe,city,fountain pen,bullet train,rooster,water wave,maple leaf,magnifying glass,child,bus stop,piano,house"
).split(",")
STYLES = (
    "plain,sketch,blueprint,neon,pixel,sepia,halftone,oil,chalk,watercolor,mosaic,comic,charcoal,gold,ice,night"
).split(",")
"""Words of ordinary prompts. Their counts have no common divisor, so that the pairs do not repeat early."""

CPU_MOMENT_BYTES = 4e9
"""Bytes for second moments in the CPU's memory."""
SOLVER_BYTES_PER_ENTRY = 48
"""Bytes for each entry of a second moment while its directions are computed: six matrices in float64."""

Moments = dict[str, Tensor]
"""{layer: C (i, i) float32}."""


def ordinary_prompts(config: TrainConfig) -> list[str]:
    """Ordinary prompts to contrast with the trigger's: NUM_PROMPTS of them; every third has the other role's trigger
    for a subject or style."""
    other = TRIGGERS["style" if config.role == "content" else "content"]
    prompts = []
    for k in range(NUM_PROMPTS):
        subject, style = SUBJECTS[k % len(SUBJECTS)], STYLES[k % len(STYLES)]
        if k % 3 == 2 and other != config.trigger:
            subject, style = (subject, other) if config.role == "content" else (other, style)
        prompts.append(f"a {subject} in {style} style")
    return prompts


def compute_contrast_directions(
    base: Base, config: TrainConfig, examples: TrainingExamples, progress: Callable[[float], Any] = lambda _: None
) -> dict[str, Tensor]:
    """{layer: Q (i, r)} of the target layers: the span of the r leading generalised eigenvectors of (C_x, C_u).

    The second moments of all layers together would be larger than the base (57 GB of FLUX.1's): layers are done in
    groups, each from the same noisy copies, so that no direction depends on the grouping.

    Args: config: without None.  examples: their `ordinary` conditioning is that of `ordinary_prompts`.
          progress: called with the fraction done, 0..1.
    """
    assert config.rank is not None and config.targets is not None and config.timestep_sampling is not None
    layers = list(base.target_layers(config.targets))
    rows = [k % len(examples) for k in range(NUM_PROMPTS)]
    conditions = (examples.condition.rows(rows), examples.ordinary)

    def moments_of(group: Sequence[str]) -> list[Moments]:
        """The second moments of a group of layers, for the prompts with and without the trigger."""
        assert config.timestep_sampling is not None
        generator = torch.Generator().manual_seed(config.seed)
        return [
            input_moments(base, group, examples.latents, x, config.timestep_sampling, generator) for x in conditions
        ]

    first_readers = shared_inputs(base, layers, examples, config.timestep_sampling)
    modules: dict[str, Any] = {layer: base.model.get_submodule(layer) for layer in first_readers.values()}
    sizes = {layer: module.weight.shape[1] for layer, module in modules.items()}
    directions: dict[str, Tensor] = {}
    for group in group_layers(sizes, moment_bytes(base.device)):
        C_x, C_u = moments_of(group)
        for layer in group:
            directions[layer] = generalised_eigenvectors(C_x.pop(layer), C_u.pop(layer), config.rank).cpu()
            progress(len(directions) / len(sizes))
    return {layer: directions[first_reader] for layer, first_reader in first_readers.items()}


def moment_bytes(device: torch.device) -> float:
    """Bytes that second moments may take: half of a GPU's free memory, CPU_MOMENT_BYTES elsewhere."""
    return torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else CPU_MOMENT_BYTES


def group_layers(sizes: Mapping[str, int], max_bytes: float) -> list[list[str]]:
    """Layers in groups whose second moments, and what the solver needs for the largest, fit into max_bytes. A layer
    that alone takes more is a group of its own.

    Args: sizes: {layer: i}.
    """
    groups: list[list[str]] = []
    taken = 0
    solver_bytes = SOLVER_BYTES_PER_ENTRY * max(sizes.values()) ** 2
    for layer, i in sizes.items():
        if not groups or taken + 2 * 4 * i**2 + solver_bytes > max_bytes:
            groups.append([])
            taken = 0
        groups[-1].append(layer)
        taken += 2 * 4 * i**2  # C_x and C_u in float32
    return groups


def generalised_eigenvectors(C_x: Tensor, C_u: Tensor, rank: int, ridge: float = RIDGE) -> Tensor:
    """Orthonormal Q of the span of the r leading generalised eigenvectors, C_x q = lambda (C_u + rho tr(C_u) / i) q.

    With L L^T the right-hand matrix: q = L^-T v, v the leading eigenvectors of L^-1 C_x L^-T. No other span of its
    dimension has as large a second moment of x relative to that of u.

    Args:    C_x, C_u (i, i).
    Returns: (i, r) float32.
    Raises:  ValueError: rank outside 1..i; NaN or infinity.
    """
    size = len(C_u)
    C_x, C_u = to_double(C_x), to_double(C_u)
    L = torch.linalg.cholesky(C_u + ridge * C_u.trace() / size * torch.eye(size, device=C_u.device))
    half = torch.linalg.solve_triangular(L, C_x, upper=False)
    whitened = torch.linalg.solve_triangular(L, half.T, upper=False)
    v = leading_subspace((whitened + whitened.T).float() / 2, rank)
    q = torch.linalg.solve_triangular(L.T, v.double(), upper=True)
    return torch.linalg.qr(q / q.norm(dim=0)).Q.float().contiguous()


@torch.no_grad()
def input_moments(
    base: Base,
    layers: Sequence[str],
    latents: Tensor,
    condition: Condition,
    timestep_sampling: str,
    generator: torch.Generator,
) -> Moments:
    """{layer: the mean of x x^T over all its input rows x} in forward passes with noise and timesteps as in training.

    Args: latents: (n, c, h, w); copy k is of image k modulo n.  condition: one row for each noisy copy.
          timestep_sampling: row of noising.TIMESTEP_SAMPLING.
    """
    sums: Moments = {}

    def add(layer: str, x: Tensor) -> None:
        rows = x.flatten(0, -2).float()
        sums[layer] = sums.get(layer, 0) + rows.T @ rows / (len(rows) * len(condition))

    with input_hooks(base.model, layers, add):
        _forward_noisy_copies(base, latents, condition, timestep_sampling, generator)
    return sums


@torch.no_grad()
def shared_inputs(
    base: Base, layers: Sequence[str], examples: TrainingExamples, timestep_sampling: str
) -> dict[str, str]:
    """{layer: the first layer with the very same input tensor}: to_q, to_k and to_v often share theirs."""
    first_readers: dict[str, str] = {}
    alive: list[tuple[weakref.ref[Tensor], str]] = []

    def note(layer: str, x: Tensor) -> None:
        """Add a layer's inputs to its second moment."""
        alive[:] = [(other, reader) for other, reader in alive if other() is not None]
        first_readers[layer] = next((reader for other, reader in alive if other() is x), layer)
        if first_readers[layer] == layer:
            alive.append((weakref.ref(x), layer))

    generator = torch.Generator().manual_seed(0)
    with input_hooks(base.model, layers, note):
        _forward_noisy_copies(base, examples.latents, examples.condition, timestep_sampling, generator)
    return {layer: first_readers[layer] for layer in layers}


def _forward_noisy_copies(
    base: Base, latents: Tensor, condition: Condition, timestep_sampling: str, generator: torch.Generator
) -> None:
    """To excite directions, one forward pass of the model for each row of the condition, on a noisy copy of image k
    modulo n for row k."""
    noising, device = noising_of(base.pipe.scheduler.config, timestep_sampling=timestep_sampling), base.device
    for k in range(len(condition)):
        image = latents[[k % len(latents)]]
        noise = torch.randn(image.shape, generator=generator)
        time = noising.sample_time(1, generator)
        noisy = noising.add_noise(image.to(device), noise.to(device), time)
        base.family.predict(base.model, noisy, time.to(device), condition.rows([k]).to(device))


@contextmanager
def input_hooks(model: nn.Module, layers: Sequence[str], on_input: Callable[[str, Tensor], Any]) -> Iterator[None]:
    """To measure what excites directions, call on_input(layer, its input) at every forward pass of these layers, for
    the length of a `with`."""

    def hook_of(layer: str) -> Callable[..., None]:
        """A hook that hands over a layer's input."""

        def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            on_input(layer, arguments[0])

        return hook

    handles = [model.get_submodule(layer).register_forward_pre_hook(hook_of(layer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
