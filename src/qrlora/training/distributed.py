"""Data-parallel training in several processes, as `accelerate launch` or `torchrun` start them.

Every process draws the noise and timesteps of the whole batch from the same generator and computes its shard of the
rows; the mean of their gradients is that of the whole batch, so that the run equals the one-process run, to rounding.
Only gradients of trainable factors are communicated: base and frozen factors are equal everywhere from the start.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn


def world_size() -> int:
    """Number of processes that were launched together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_rank_zero() -> bool:
    """Whether this process writes the files and the messages: the only one, or rank 0 of several."""
    return int(os.environ.get("RANK", "0")) == 0


@dataclass(frozen=True)
class Processes:
    """The process group of a run, seen from this process."""

    rank: int = 0
    """0..count - 1."""
    count: int = 1
    """The world size."""

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process writes the files and the messages."""
        return self.rank == 0

    def shard(self, rows: Tensor) -> Tensor:
        """This process's shard of a batch (b, ...): (b / count, ...)."""
        size = len(rows) // self.count
        return rows[self.rank * size : (self.rank + 1) * size]

    def average_gradients(self, parameters: Sequence[nn.Parameter], loss: Tensor, stop: bool) -> tuple[Tensor, bool]:
        """All-reduce: replace each gradient by its mean over the processes.

        Returns: the mean loss, and whether any process got a stop signal; equal in all of them.
        Raises:  OSError: another process has ended.
        """
        if self.count == 1:
            return loss, stop
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        loss_and_stop = torch.stack([loss.float(), loss.new_tensor(float(stop), dtype=torch.float32)])
        flat = torch.cat([*(x.flatten() for x in gradients), loss_and_stop])
        try:
            distributed.all_reduce(flat)
        except RuntimeError as error:
            raise OSError(
                f"another process of this run has ended ({str(error).splitlines()[0]}); "
                "the same command goes on from the last checkpoint"
            ) from error
        flat /= self.count
        for gradient, mean in zip(gradients, flat.split([x.numel() for x in gradients] + [2]), strict=False):
            gradient.copy_(mean.view_as(gradient))
        return flat[-2], float(flat[-1]) > 0

    def assert_equal_across_ranks(self, basis: str) -> None:
        """Check that all processes, each of which has computed its basis, have the one of this digest.

        Raises: ValueError: they differ, as on GPUs of different kinds, and the mean of gradients would mean nothing.
        """
        if self.count == 1:
            return
        digests: list[str | None] = [None] * self.count
        distributed.all_gather_object(digests, basis)
        if len(set(digests)) > 1:
            raise ValueError("the processes found different directions: launch them on devices of one kind")

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            distributed.barrier()

    @contextlib.contextmanager
    def rank_zero_first(self) -> Iterator[None]:
        """Rank 0 runs the `with` block alone, then the other processes, which find its caches."""
        if not self.is_rank_zero:
            self.barrier()
        try:
            yield
        finally:
            if self.is_rank_zero:
                self.barrier()


def init_distributed(device: str) -> Processes:
    """Join the process group that a launcher describes; without one, a group of this process alone.

    Args:    device: a torch device, or auto. With several GPUs each process gets its own.
    Raises:  ValueError: one GPU for several processes.
    """
    count, local = world_size(), int(os.environ.get("LOCAL_RANK", "0"))
    if count == 1:
        return Processes()
    on_gpus = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
    if on_gpus:
        if device not in ("auto", "cuda", f"cuda:{local}") or local >= torch.cuda.device_count():
            found = f"{count} processes, {torch.cuda.device_count()} GPUs and device={device}"
            raise ValueError(f"{found}: launch one process for each GPU with device=auto, or use device=cpu")
        torch.cuda.set_device(local)
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if on_gpus else "gloo")
        atexit.register(lambda: distributed.destroy_process_group() if distributed.is_initialized() else None)
    return Processes(distributed.get_rank(), distributed.get_world_size())
