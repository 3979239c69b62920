"""parallel_map: a function over many items, several at a time, with threads beside each other instead of within
each."""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")
MAX_WORKERS = 4
"""Threads at a time; each needs memory of its own."""


def parallel_map(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """function(item) for each, in order, a few at a time; the next item is fetched meanwhile.

    Much of a small matrix's decomposition is serial, so that two threads do more on two matrices than on one. The
    threads that torch may use are shared out, and given back at the end.

    Raises: what function or items raise; what has not begun then is not begun.
    """
    threads = torch.get_num_threads()
    workers = min(threads, MAX_WORKERS)
    if workers == 1:
        yield from map(function, items)
        return
    waiting: deque[Future[R]] = deque()
    if torch.cuda.is_initialized():
        _load_decompositions()
    torch.set_num_threads(threads // workers)  # a thread takes over what is set when it begins
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(threads)


@functools.cache
def _load_decompositions() -> None:
    """torch loads its CUDA library of decompositions at the first call, and two threads that call first together fail:
    "lazy wrapper should be called at most once" (pytorch/pytorch#90613, seen on an H200)."""
    torch.linalg.eigh(torch.eye(2, device="cuda"))


def on_device(function: Callable[[torch.Tensor], R], tensor: torch.Tensor, device: str | None) -> R:
    """work(tensor) on a device, in a stream of its own there; on the CPU where that device's memory runs out, as beside
    a model that fills it. None: where the tensor lies, and nowhere else."""
    if device is not None:
        with contextlib.suppress(torch.cuda.OutOfMemoryError):
            return on_device(function, tensor.to(device), None)
        tensor = tensor.cpu()
    with cuda_stream_of_thread(tensor.device):
        return function(tensor)


@contextlib.contextmanager
def cuda_stream_of_thread(device: torch.device) -> Iterator[None]:
    """For work in parallel on one GPU: a stream for this piece of it, after all that was asked of the device before.
    While one piece is busy on the CPU, with eigenvectors of small matrices, the GPU works for another. All is done at
    the end."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.default_stream(device))
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()
