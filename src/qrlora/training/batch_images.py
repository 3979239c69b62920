"""Which of several training images an update is computed on, and their latents and conditioning on the device."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..families import Base
from ..training_example import TrainingExamples
from .distributed import Processes


def image_indices(step: int, batch_size: int, count: int, seed: int) -> list[int]:
    """Which of several images each row of an update's batch is computed on: index 0..count - 1.

    Epoch after epoch every image comes once, in an order drawn anew from the run's seed and the epoch's number alone:
    it depends neither on the noise drawn so far, nor on where a run was stopped, nor on the number of processes.

    Args: step: of the update, 1, 2, ...
    """
    first = (step - 1) * batch_size
    places = [divmod(row, count) for row in range(first, first + batch_size)]
    return [_epoch_order(seed, epoch, count)[place] for epoch, place in places]


@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, count: int) -> list[int]:
    """The order of the images in an epoch: a permutation of 0..count - 1."""
    digest = hashlib.sha256(f"order of images {seed} {epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
    return torch.randperm(count, generator=generator).tolist()


class Batch(NamedTuple):
    """What the noisy copies of an update are made of."""

    latents: Tensor
    """(b, c, h, w)."""
    condition: Any
    """Conditioning of b rows."""
    loss_weights: Tensor | None
    """(b, 1, h, w), or (1, 1, h, w) for all; None: all places weigh the same."""


def make_batches(
    base: Base, examples: TrainingExamples, batch_size: int, seed: int, processes: Processes
) -> Callable[[int], Batch]:
    """(step) -> this process's shard of the update's batch, on the device.

    A single image is on the device from the start. Of several, which would take a GPU megabytes each, the batch's own
    are copied there for each update.
    """
    device, size = base.device, batch_size // processes.count
    if len(examples) == 1:
        latents, weights = examples.latents.to(device), examples.loss_weights
        alone = Batch(
            latents.expand(size, *[-1] * (latents.ndim - 1)),
            examples.condition.to(device).rows([0] * size),
            None if weights is None else weights.to(device),
        )
        return lambda step: alone
    latents, condition = examples.latents.cpu(), examples.condition.to("cpu")

    def copied(x: Tensor) -> Tensor:
        return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)

    def batch(step: int) -> Batch:
        """The images' latents and conditioning of an update, this process's shard."""
        rows = processes.shard(torch.tensor(image_indices(step, batch_size, len(examples), seed)))
        chosen = condition.rows(rows)
        on_device = replace(chosen, tensors={name: copied(x) for name, x in chosen.tensors.items()})
        weights = None if examples.loss_weights is None else copied(examples.loss_weights[rows])
        return Batch(copied(latents[rows]), on_device, weights)

    return batch
