"""How much memory a device has free, and the most that a piece of work takes.

Of a GPU: what torch has allocated on it, exactly. Else: the bytes of this process that are in RAM, looked at every
PAUSE seconds; the pages of libraries that come into use are among them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import psutil
import torch

from ..devices import return_freed_memory

PAUSE = 0.005
"""Seconds between two looks."""


def free_bytes(device: torch.device) -> int:
    """Bytes of memory that a device has free; of RAM, what can be had without swapping."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def bytes_in_use(device: torch.device) -> int:
    """Bytes that this process uses on a device."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss


def private_bytes() -> int:
    """Bytes of this process in RAM that no other process shares; libraries' pages are shared."""
    info = psutil.Process().memory_info()
    return info.rss - getattr(info, "shared", 0)


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], int]]:
    """Measure the peak memory of a device: yields a function, the most bytes in use at once since the `with` began."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device)
        return
    return_freed_memory()
    most, over = [bytes_in_use(device)], threading.Event()

    def look() -> None:
        """Look at the memory in use again and again."""
        while not over.wait(PAUSE):
            most[0] = max(most[0], bytes_in_use(device))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield lambda: max(most[0], bytes_in_use(device))
    finally:
        over.set()
        watcher.join()


def wait_for_device(device: torch.device) -> None:
    """Wait until a GPU has finished its kernels."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
