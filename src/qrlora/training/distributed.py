"""One run in several processes, as `accelerate launch` or `torchrun` start them: each takes its share of every batch.

All draw the same noise and times from the same generator and keep their rows; the mean of their gradients is that of
the whole batch, so the run is the one-process run, to rounding. Only the learning factors' gradients travel: the base
and the frozen factors are equal everywhere from the start.
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
    """The processes that were launched together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_rank_zero() -> bool:
    """Whether this process writes the files and speaks to the person: the only one, or the first of several."""
    return int(os.environ.get("RANK", "0")) == 0


@dataclass(frozen=True)
class Processes:
    """This process among those of a run."""

    index: int = 0
    """0..count-1; 0 is the main one."""
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether this one writes and speaks."""
        return self.index == 0

    def share(self, rows: Tensor) -> Tensor:
        """This process's rows of a batch (b, ...): (b / count, ...)."""
        size = len(rows) // self.count
        return rows[self.index * size : (self.index + 1) * size]

    def average(self, parameters: Sequence[nn.Parameter], loss: Tensor, stop: bool) -> tuple[Tensor, bool]:
        """Replace each gradient by its mean over the processes.

        Returns: the mean loss, and whether any process was asked to stop; equal in all of them.
        Raises:  OSError: another process has ended.
        """
        if self.count == 1:
            return loss, stop
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        told = torch.stack([loss.float(), loss.new_tensor(float(stop), dtype=torch.float32)])
        flat = torch.cat([*(x.flatten() for x in gradients), told])
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
        """That all start from one basis, given its digest: each process has found its own.

        Raises: ValueError: they differ, as on GPUs of different kinds, and the mean of gradients would mean nothing.
        """
        if self.count == 1:
            return
        digests: list[str | None] = [None] * self.count
        distributed.all_gather_object(digests, basis)
        if len(set(digests)) > 1:
            raise ValueError("the processes found different directions: launch them on devices of one kind")

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            distributed.barrier()

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process goes through the `with` alone, then the others, who find its caches."""
        if not self.main:
            self.wait()
        try:
            yield
        finally:
            if self.main:
                self.wait()


def init_distributed(device: str) -> Processes:
    """The processes that were launched together; one alone unless a launcher says otherwise.

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
