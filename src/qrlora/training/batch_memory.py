"""Batches that no memory holds, refused before the first update: a system that is out of memory ends a process without
a word."""

from __future__ import annotations

import torch

from ..config import TrainConfig
from ..devices import check_fits_memory
from ..families import Base
from ..training_example import TrainingExamples
from .distributed import Processes
from .gradient_checkpointing import gradient_checkpointing, saved_activation_bytes

COMMON_BATCH = 16
"""Noisy copies up to which activations are not counted beforehand: so many are common, and counting takes a pass."""


def check_latents_fit_memory(config: TrainConfig, base: Base, examples: TrainingExamples, processes: Processes) -> None:
    """Raises ValueError: an update whose noise, noisy latents, prediction and target alone, in float32, take more
    memory than the base's device has."""
    assert config.batch_size is not None
    needed = 4 * config.batch_size // processes.count * examples.latents[:1].nbytes
    check_fits_memory(f"batch_size={config.batch_size}", needed, base.device, "take fewer copies")


def check_activations_fit_memory(
    config: TrainConfig, base: Base, examples: TrainingExamples, processes: Processes
) -> None:
    """Raises ValueError: the activations that an update keeps for its backward pass, with the adapter on the model,
    take more memory than the base's device has. Those of one noisy copy are counted in a forward pass; not on a GPU,
    which says by itself that its memory ran out."""
    assert config.batch_size is not None
    device, copies = base.device, config.batch_size // processes.count
    if copies <= COMMON_BATCH or device.type == "cuda":
        return
    latents, condition = examples.latents[:1].to(device), examples.condition.rows([0]).to(device)
    time = base.noising.sample_time(1, torch.Generator("cpu").manual_seed(0)).to(device)
    known = [*base.model.parameters(), *base.model.buffers(), latents, *condition.tensors.values()]
    with gradient_checkpointing(base.model, bool(config.gradient_checkpointing)):
        each = saved_activation_bytes(lambda: base.family.predict(base.model, latents, time, condition), known)
    hint = "take fewer copies" + ("" if config.gradient_checkpointing else ", or gradient_checkpointing=true")
    check_fits_memory(f"batch_size={config.batch_size}", copies * each, device, hint)
