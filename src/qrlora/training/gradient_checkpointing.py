"""Activations that are computed again in the backward pass, where a GPU's memory is too small to keep them."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..devices import free_memory, spills

T = TypeVar("T")
MARGIN = 1.1
"""Times the bytes of an update: an allocator leaves gaps."""
MOMENTS = 8
"""Bytes of Adam's two moments of a learning number."""


@contextlib.contextmanager
def recomputing(model: Any, wanted: bool | None) -> Iterator[Callable[[Callable[[], T]], T]]:
    """Activations are computed again in the backward pass for the length of a `with`, if wanted.

    Yields: (work) -> work(). Where `wanted` is None and a GPU's memory runs out in it, it is done once more with
            activations computed again, and so is all that follows; work must leave no trace when it fails.
    """
    on = False

    def turn(whether: bool) -> None:
        nonlocal on
        if on != whether:
            on = whether
            (model.enable_gradient_checkpointing if on else model.disable_gradient_checkpointing)()

    def with_oom_retry(work: Callable[[], T]) -> T:
        if on or wanted is not None:
            return work()
        try:
            return work()
        except torch.cuda.OutOfMemoryError:
            pass  # the error holds what filled the memory: it must be gone before the next try
        warnings.warn("memory ran out: activations are computed again in backward passes, a third slower", stacklevel=2)
        turn(True)
        torch.cuda.empty_cache()
        return work()

    turn(bool(wanted))
    try:
        yield with_oom_retry
    finally:
        turn(False)


def must_recompute(
    model: Any, loss: Callable[[], Tensor], parameters: Iterable[nn.Parameter], known: Iterable[Tensor]
) -> bool:
    """Whether a GPU that spills over, and so would never say that its memory ran out, is too small to keep what an
    update's forward pass leaves for its backward pass. False on other devices, which say so.

    What would be kept is counted; what a backward pass takes beside it is no more than an update at its sparsest, which
    is tried. Gradients are forgotten; random numbers are drawn twice.

    Args: loss: an update's forward pass.  parameters: what learns.  known: what is there all the time.
    """
    learning = list(parameters)
    device = learning[0].device
    if not spills(device):
        return False
    kept = kept_bytes(loss, known)
    with recomputing(model, True):
        beside = peak_bytes(lambda: loss().backward(), device)
    for parameter in learning:
        parameter.grad = None
    need = MARGIN * (kept + beside + MOMENTS * sum(x.numel() for x in learning))
    free = free_memory(device)
    if need <= free:
        return False
    found = f"an update needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
    warnings.warn(f"{found}: activations are computed again in backward passes, a third slower", stacklevel=2)
    return True


def peak_bytes(work: Callable[[], Any], device: torch.device) -> int:
    """Most bytes of a GPU that a piece of work takes at once."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    return torch.cuda.max_memory_allocated(device) - before


def kept_bytes(work: Callable[[], Any], known: Iterable[Tensor]) -> int:
    """Bytes of the storages that a forward pass leaves for its backward pass, but for those of `known`. They are
    counted and let go, so that this takes no more memory than a pass without gradients."""
    held = [part.untyped_storage() for x in known for part in _plain(x)]  # held, so that no other gets their ids
    seen: dict[int, Any] = {id(storage): None for storage in held}
    total = 0

    def count(x: Tensor) -> None:
        nonlocal total
        for part in _plain(x):
            storage = part.untyped_storage()
            key = id(storage)
            if key not in seen:
                seen[key] = weakref.ref(storage, lambda _, key=key: seen.pop(key))
                total += storage.nbytes()

    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        work()
    return total


def _plain(x: Tensor) -> list[Tensor]:
    """The tensors with memory that one is made of: a quantised weight is several."""
    return [getattr(x, name) for name in x.__tensor_flatten__()[0]] if is_traceable_wrapper_subclass(x) else [x]
