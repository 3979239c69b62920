"""How many images are sampled at once: as many as the device has memory for."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .devices import free_memory, pages_to_host_memory
from .families import Base
from .image_size import ImageSize, height_and_width, parse_image_size

MAX_BATCH, CPU_PIXELS_AT_ONCE = 12, 1024**2
"""Images that are sampled at once unless the caller says otherwise; on a CPU, which gives no warning before its memory
is full, as many as have together so many pixels."""


def sample_batches(
    base: Base, sample: Callable[[slice], Tensor], total: int, size: ImageSize | None, wanted: int | None = None
) -> Iterator[Tensor]:
    """sample(slice), their latents, for `total` images of a size, so many at once as are wanted; None: as many as
    the device holds, by halving the number where a GPU's memory runs out; where a GPU would spill over and not say
    so, as many as are free for, by what the first image took.

    Raises: ValueError: fewer than 1 wanted.  OutOfMemoryError: one image is too much, or so many as are wanted.
    """
    if wanted is not None and wanted < 1:
        raise ValueError(f"batch_size must be 1 or more, got {wanted}")
    height, width = height_and_width(parse_image_size("size", size) or base.defaults.resolution)
    on_gpu, unmeasured = base.device.type == "cuda", wanted is None and pages_to_host_memory(base.device)
    done, at_once = 0, wanted or (MAX_BATCH if on_gpu else min(CPU_PIXELS_AT_ONCE // (height * width) or 1, MAX_BATCH))
    if unmeasured:
        at_once = 1
        torch.cuda.reset_peak_memory_stats(base.device)
    while done < total:
        try:
            some = sample(slice(done, min(done + at_once, total)))
        except torch.cuda.OutOfMemoryError:
            if wanted or at_once == 1:
                raise
            some = None  # the error holds what filled the memory: it must be gone before the next try
        if some is not None:
            if unmeasured:
                at_once, unmeasured = min(_images_that_fit(base.device), MAX_BATCH), False
            yield some
            done += len(some)
        else:
            at_once = -(-at_once // 2)
            torch.cuda.empty_cache()


def _images_that_fit(device: torch.device) -> int:
    """How many images a GPU has memory for, 1 or more, by the most that was in use while the first was sampled, beyond
    what is there for longer; a model that has left the GPU since counts as if each image brought its own."""
    each = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
    return max(1, int(free_memory(device) / (1.1 * max(each, 1))))  # a tenth more: an allocator leaves gaps
