"""The whole model with random weights, for real: basis, updates, merge and a denoising step by the code that trains.

Random latents and conditions of the right shapes stand in for what text encoders and VAE would give; those are not
built. A random model trains to nothing: only its times and memory mean something.
"""

from __future__ import annotations

import time as clock
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .. import merging
from ..adapter import Adapter, Header
from ..basis import Basis, compute_basis
from ..devices import return_freed_memory
from ..families.base_without_weights import materialise, materialise_quantised
from ..initialisation_methods import METHODS
from ..injection import applied, detach, extract, initialise
from ..training.distributed import Processes
from ..training.optimizers import OPTIMIZERS
from ..training.trainable_adapter import ADAPTER_NAME
from ..training.training_loop import gradient_checkpointing, make_loss
from ..training_example import TrainingExamples
from .device_memory import bytes_in_use, peak_memory, wait_for_device
from .time_blocks import median_seconds
from .training_task import Stage, TrainingTask


@dataclass(frozen=True)
class Stopwatch:
    """Where and how often things are measured."""

    device: torch.device
    repeats: int
    """Runs whose median counts, after one that warms up."""
    before: int
    """Bytes in use before the model was there."""
    on_stage: Callable[[str, float], Any]
    """(what, share done 0..1)."""

    def once(self, work: Callable[[], Any]) -> tuple[Any, Stage]:
        """Run work once on the whole model: what it returns, and its time and memory."""
        with peak_memory(self.device) as peak:
            begun = clock.perf_counter()
            result = work()
            wait_for_device(self.device)
            return result, Stage(clock.perf_counter() - begun, peak() - self.before)

    def often(self, work: Callable[[], Any]) -> Stage:
        """Run work `repeats` times on the whole model: the time of one, and the peak memory of all."""
        with peak_memory(self.device) as peak:
            took = median_seconds(work, self.device, self.repeats)
            return Stage(took, peak() - self.before)


def run_whole_model(
    task: TrainingTask, methods: list[str], device: torch.device, repeats: int, on_stage: Callable[[str, float], Any]
) -> dict[str, dict[str, Stage]]:
    """{method: {stage: what it took}}; the base of the task is on the device afterwards.

    Args:    task: its base on the meta device, without adapters.  repeats: timed updates and denoising steps.
             on_stage: (what, share done 0..1).
    Raises:  ValueError: a rank that does not fit, NaN or infinity in the trained factors.
    """
    return_freed_memory()
    stopwatch = Stopwatch(device, repeats, bytes_in_use(device), on_stage)
    on_stage("filling the whole model with random numbers", 0.0)
    if task.config.quantize:
        materialise_quantised(task.base, task.config.quantize, device)
    else:
        materialise(task.base.model, device)
    bases = {side: stopwatch.once(lambda s=side: _timed_basis(task, s, on_stage)) for side in sides_of(methods)}
    found = {}
    for method in methods:
        side = METHODS[method].side
        basis, spent = bases[side] if side else (None, None)
        found[method] = {
            **({"basis": spent} if spent else {}),
            **_stages_of_method(task.with_method(method), basis, stopwatch),
        }
    return found


def sides_of(methods: list[str]) -> list[str]:
    """The sides whose leading directions methods start from, each once."""
    return list(dict.fromkeys(side for method in methods if (side := METHODS[method].side)))


def _timed_basis(task: TrainingTask, side: str, on_stage: Callable[[str, float], Any]) -> Basis:
    """Time the basis of the whole model."""
    weights = task.base.weights(task.targets)
    done: list[str] = []

    def count(layer: str) -> None:
        """Report how many of the layers have their directions."""
        done.append(layer)
        on_stage("finding the leading directions", len(done) / len(weights))

    return compute_basis(weights, task.rank, side, count)


def _stages_of_method(task: TrainingTask, basis: Basis | None, stopwatch: Stopwatch) -> dict[str, Stage]:
    """Time a method's stages on the whole model: updates, a merge, a denoising step with what was merged."""
    model, method = task.base.model, METHODS[task.config.method]
    generator = torch.Generator().manual_seed(task.config.seed)
    directions: Any = basis.Q if basis else {}
    weights = task.base.weights(task.targets)
    starts = {layer: method.start(w, directions.get(layer), task.rank, generator) for layer, w in weights}
    parameters = initialise(model, starts, ADAPTER_NAME)
    update = _timed_updates(task, parameters, generator, stopwatch)
    adapter = extract(model, ADAPTER_NAME, Header(family=task.base.family.name, method=method.name, rank=task.rank))
    detach(model, ADAPTER_NAME)
    stopwatch.on_stage(f"{method.name}: merging", 0.0)
    pair, rule = [adapter, adapter.scaled(0.5)], "sum" if method.frozen else "stack"
    merged, merge = stopwatch.once(lambda: merging.merge(pair, [1.0, 1.0], rule))
    return {
        "update": update,
        "merge": Stage(merge.seconds),
        "denoising step": _timed_denoising(task, merged, stopwatch),
    }


def _timed_updates(
    task: TrainingTask, parameters: list[nn.Parameter], generator: torch.Generator, stopwatch: Stopwatch
) -> Stage:
    """Time updates of the whole model as training makes them, on random latents and a random condition."""
    config, done = task.config, 0
    assert config.learning_rate is not None
    loss = make_loss(config, task.base, TrainingExamples(*task.example(1, stopwatch.device)), generator, Processes())
    optimizer = OPTIMIZERS[config.optimizer](parameters, config.learning_rate)

    def one_update() -> None:
        """One update of the adapter on the whole model."""
        nonlocal done
        stopwatch.on_stage(f"{config.method}: update {done} of {stopwatch.repeats}, after one that warms up", 0.0)
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        done += 1

    with gradient_checkpointing(task.base.model, config.gradient_checkpointing):
        return stopwatch.often(one_update)


def _timed_denoising(task: TrainingTask, adapter: Adapter, stopwatch: Stopwatch) -> Stage:
    """Time the whole model's prediction in a denoising step, for one image, with an adapter on it."""
    base = task.base
    rows = base.family.rows_per_step(base.pipe, base.defaults.guidance)
    latents, condition = task.example(rows, stopwatch.device)
    time = base.noising.sample_time(rows, torch.Generator().manual_seed(task.config.seed)).to(stopwatch.device)
    stopwatch.on_stage(f"{task.config.method}: denoising", 0.0)
    with torch.no_grad(), applied(base.model, [(adapter, 1.0)]):
        return stopwatch.often(lambda: base.family.predict(base.model, latents, time, condition))
