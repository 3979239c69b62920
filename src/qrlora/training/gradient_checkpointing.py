"""Gradient checkpointing, on, off or once a GPU's memory has run out: activations recomputed in the backward pass."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..devices import free_memory, pages_to_host_memory

T = TypeVar("T")
ALLOCATOR_MARGIN = 1.1
"""Factor on the bytes of an update: the allocator leaves gaps."""
ADAM_BYTES_PER_PARAMETER = 8
"""Bytes of Adam's two moments of a trainable parameter."""


@contextlib.contextmanager
def gradient_checkpointing(model: Any, wanted: bool | None) -> Iterator[Callable[[Callable[[], T]], T]]:
    """Gradient checkpointing of a diffusers model for the length of a `with`: on, off, or (None) once memory runs out.

    Yields: (work) -> work(). If `wanted` is None and the GPU's memory runs out in it, work is repeated with gradient
            checkpointing, which stays on; work must have no side effects when it fails.
    """
    on = False

    def switch(new_state: bool) -> None:
        """Turn the model's gradient checkpointing on or off."""
        nonlocal on
        if on != new_state:
            on = new_state
            (model.enable_gradient_checkpointing if on else model.disable_gradient_checkpointing)()

    def with_oom_retry(work: Callable[[], T]) -> T:
        """Do a piece of work; if memory runs out, turn gradient checkpointing on and do it once more."""
        if on or wanted is not None:
            return work()
        try:
            return work()
        except torch.cuda.OutOfMemoryError:
            pass  # the error references the tensors that filled the memory: it must be gone before the retry
        warnings.warn("memory ran out: activations are computed again in backward passes, a third slower", stacklevel=2)
        switch(True)
        torch.cuda.empty_cache()
        return work()

    switch(bool(wanted))
    try:
        yield with_oom_retry
    finally:
        switch(False)


def needs_gradient_checkpointing(
    model: Any, loss: Callable[[], Tensor], parameters: Iterable[nn.Parameter], known: Iterable[Tensor]
) -> bool:
    """Whether an update's activations do not fit a GPU whose driver pages to the computer's memory instead of raising
    an out-of-memory error. False on other devices, which do raise it.

    The saved activations are counted; the rest of an update is bounded by its peak with gradient checkpointing, which
    is run. Gradients are discarded; random numbers are drawn twice.

    Args: loss: an update's forward pass.  parameters: the trainable ones.  known: tensors that are in memory anyway.
    """
    trainable = list(parameters)
    device = trainable[0].device
    if not pages_to_host_memory(device):
        return False
    saved = saved_activation_bytes(loss, known)
    with gradient_checkpointing(model, True):
        recomputed = peak_bytes(lambda: loss().backward(), device)
    for parameter in trainable:
        parameter.grad = None
    need = ALLOCATOR_MARGIN * (saved + recomputed + ADAM_BYTES_PER_PARAMETER * sum(x.numel() for x in trainable))
    free = free_memory(device)
    if need <= free:
        return False
    sizes = f"an update needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
    warnings.warn(f"{sizes}: activations are computed again in backward passes, a third slower", stacklevel=2)
    return True


def peak_bytes(work: Callable[[], Any], device: torch.device) -> int:
    """Peak GPU memory of a forward and backward pass, in bytes, by which checkpointing is decided."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    return torch.cuda.max_memory_allocated(device) - before


def saved_activation_bytes(work: Callable[[], Any], known: Iterable[Tensor]) -> int:
    """Bytes of the storages that autograd saves in a forward pass, but for those of `known`. They are counted and
    released, so that this takes no more memory than a pass without gradients."""
    held = [part.untyped_storage() for x in known for part in _inner_tensors(x)]  # so that ids are not reused
    seen: dict[int, Any] = {id(storage): None for storage in held}
    total = 0

    def count(x: Tensor) -> None:
        """Count the storage of an activation that autograd saves."""
        nonlocal total
        for part in _inner_tensors(x):
            storage = part.untyped_storage()
            key = id(storage)
            if key not in seen:
                seen[key] = weakref.ref(storage, lambda _, key=key: seen.pop(key))
                total += storage.nbytes()

    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        work()
    return total


def _inner_tensors(x: Tensor) -> list[Tensor]:
    """The tensors that a tensor subclass wraps: a quantised weight has several."""
    return [getattr(x, name) for name in x.__tensor_flatten__()[0]] if is_traceable_wrapper_subclass(x) else [x]
