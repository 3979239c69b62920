"""Settings of the process of a command on adapter files: threads, garbage collection."""

import contextlib
import gc
from collections.abc import Iterator


def use_one_thread() -> None:
    """Set one thread for a command on files, which is many small products: on a busy machine, threads wait for each
    other far longer than they work (a merge of two 560-layer files, two busy cores: 10.8 s with two threads, 0.3 s with
    one)."""
    import torch

    torch.set_num_threads(1)


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """No garbage collection in a command that is over in seconds: what it loads lives to the end, and looking through
    it again and again takes a seventh of `inspect`."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # or Python would look through it all once more on its way out
        gc.enable()
