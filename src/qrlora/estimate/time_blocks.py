"""How long a step takes, from one real block of each kind at its real shapes: for machines too small for the model."""

from __future__ import annotations

import copy
import statistics
import time as clock
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter, tree_map

from ..devices import check_fits_memory
from ..families.base_without_weights import materialise
from ..initialisation_methods import METHODS
from ..injection import detach
from ..linalg import leading_subspace
from ..training.trainable_adapter import ADAPTER_NAME
from .device_memory import wait_for_device
from .memory_counting import LiveBytes, initialise_on_meta
from .training_task import Stage, TrainingTask


@dataclass
class BlockKind:
    """Blocks of one class, with weights and inputs of equal shapes, on the meta device."""

    block: nn.Module
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    count: int


def estimate_from_blocks(
    task: TrainingTask, methods: list[str], device: torch.device, repeats: int, on_stage: Callable[[str, float], Any]
) -> dict[str, dict[str, Stage]]:
    """{method: {stage: seconds of the whole model}}: those of one block of each kind times how many there are.

    Args:   task: its base on the meta device, without adapters.  repeats: timed runs.
            on_stage: (what, share done 0..1).
    """
    shapes = [(int(w.shape[0]), int(w.shape[1])) for _, w in task.base.weights(task.targets)]
    found = {}
    for method in methods:
        side = METHODS[method].side
        on_stage(f"{method}: timing a basis and a block of each kind", 0.0)
        basis = {"basis": Stage(basis_seconds(shapes, task.rank, side, device))} if side else {}
        initialise_on_meta(task.with_method(method))
        found[method] = {**basis, **_update_and_denoising(task, device, repeats)}
        detach(task.base.model, ADAPTER_NAME)
    return found


def _update_and_denoising(task: TrainingTask, device: torch.device, repeats: int) -> dict[str, Stage]:
    """Estimate an update and a denoising step from the times of the model's blocks."""
    base = task.base
    times = [(kind.count, *block_seconds(kind, device, repeats)) for kind in block_kinds(task)]
    update, forward = (sum(row[0] * row[k] for row in times) for k in (1, 2))
    again = forward if task.config.gradient_checkpointing else 0
    rows = base.family.rows_per_step(base.pipe, base.defaults.guidance)
    return {"update": Stage(update + again), "denoising step": Stage(forward * rows / task.batch_size)}


def block_kinds(task: TrainingTask) -> list[BlockKind]:
    """Every kind of block that the model runs in an update, with how often."""
    base = task.base
    found: dict[Any, BlockKind] = {}

    def note(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Note a block that the model runs, its inputs and how often it came."""
        weights = tuple((n, tuple(p.shape)) for n, p in module.named_parameters())
        read = tuple(tuple(x.shape) for x in tree_iter((arguments, named)) if isinstance(x, Tensor))
        key = (type(module).__name__, weights, read)
        count = found[key].count if key in found else 0
        found[key] = BlockKind(module, arguments, named, count + 1)  # the last: its inputs carry gradients

    hooks = [
        module.register_forward_pre_hook(note, with_kwargs=True)
        for module in base.model.modules()
        if type(module).__name__ in base.family.block_classes
    ]
    latents, condition = task.example(task.batch_size, "meta")
    try:
        with torch.device("meta"), LiveBytes():
            base.family.predict(base.model, latents, torch.empty(len(latents)), condition)
    finally:
        for hook in hooks:
            hook.remove()
    return list(found.values())


def block_seconds(kind: BlockKind, device: torch.device, repeats: int) -> tuple[float, float]:
    """Median seconds of a block's forward with backward pass, and of its forward pass without gradients."""
    inputs = sum(x.nbytes for x in tree_iter((kind.arguments, kind.named)) if isinstance(x, Tensor))
    what = f"the inputs of a {type(kind.block).__name__}, their gradients and its outputs"
    check_fits_memory(what, 3 * inputs, device, "take a smaller resolution or batch")
    block = copy.deepcopy(kind.block)
    materialise(block, device)

    def real(value: Any) -> Any:
        """A tensor of the meta device as a real one with random numbers, for timing a block."""
        if not isinstance(value, Tensor):
            return value
        drawn = torch.randn(value.shape, device=device).to(value.dtype)
        return drawn.requires_grad_(value.requires_grad)

    arguments, named = tree_map(real, (kind.arguments, kind.named))

    def train_step() -> None:
        outputs = [x for x in tree_iter(block(*arguments, **named)) if isinstance(x, Tensor) and x.requires_grad]
        torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])

    def forward() -> None:
        with torch.no_grad():
            block(*arguments, **named)

    return median_seconds(train_step, device, repeats), median_seconds(forward, device, repeats)


def median_seconds(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Time a block or other work: median of `repeats` runs after one that warms up; waits for a GPU to be done."""
    times = []
    for _ in range(repeats + 1):
        wait_for_device(device)
        begun = clock.perf_counter()
        work()
        wait_for_device(device)
        times.append(clock.perf_counter() - begun)
    return statistics.median(times[1:])


def basis_seconds(shapes: Sequence[tuple[int, int]], rank: int, side: str, device: torch.device) -> float:
    """Time a basis of weights (o, i) from one weight of each shape, times how many there are."""
    total = 0.0
    for shape in dict.fromkeys(shapes):
        weight = torch.randn(shape, device=device)
        begun = clock.perf_counter()
        leading_subspace(weight, rank, side)
        wait_for_device(device)
        total += (clock.perf_counter() - begun) * shapes.count(shape)
    return total
