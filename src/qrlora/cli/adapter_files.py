"""Adapter files that verbs read and write: opening with a count of what is left out, trying an output, reporting."""

import functools
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import console, tables, usage_hints
from .progress_bar import progress_bar

if TYPE_CHECKING:
    from torch import Tensor

    from ..adapter import Adapter


def read_adapter(
    path: str | Path, skip_text_encoders: bool, weights: "Callable[[str], Tensor] | None" = None
) -> "Adapter":
    """Read an adapter file for a verb; what is left out is counted aloud. Args and errors as files.load."""
    from .. import files

    usage_hints.refuse_picture(str(path))
    adapter = files.load(path, skip_text_encoders, weights)
    left_out = files.count_text_encoder_keys(path) if skip_text_encoders else 0
    if left_out:
        console.say(f"{path}: {left_out} keys of text encoders left out")
    return adapter


def with_own_name(path: str | Path) -> Path:
    """A path that ends in a name: "." and ".." have none of their own, but those of the folders that they are."""
    return Path(path) if Path(path).name.strip(".") else Path(os.path.abspath(path))


def base_weights(base: str) -> "Callable[[str], Tensor]":
    """(layer) -> its weight in a base, which is opened for the first one."""
    opened = functools.cache(lambda: open_base_for_weights(base))
    return lambda layer: opened().weight(layer)


def open_base_for_weights(base: str) -> Any:
    """For verbs on adapter files: open a base of which nothing but its weights is wanted, for which a CPU is fast
    enough."""
    from .. import optional_dependencies

    optional_dependencies.require("diffusers", reason="a base model")
    from .. import families

    with warnings.catch_warnings(), progress_bar(f"opening {base}", transient=True):
        warnings.simplefilter("ignore", families.SlowDevice)
        return families.open_base(base, device="cpu")


def check_output(output: Path) -> bool:
    """Whether a verb's adapter file is there before it is written; that it can be is tried.

    Raises: ValueError: no name of an adapter's file.  OSError: see `output_files.check_writable`.
    """
    from .. import output_files

    if output.suffix != ".safetensors":
        raise ValueError(f"{output}: the name must end in .safetensors")
    output_files.check_writable(output, overwrite=True)
    return output.exists()


def report_written(output: Path, adapter: "Adapter", more: str, done_before: bool) -> None:
    """The line about an adapter's file that was written, or that was there with this very content."""
    known = ", done before: the file is left as it is" if done_before else ""
    size = tables.file_size(output)
    console.say(f"{output}: {len(adapter.layers)} layers, rank {adapter.rank}, {size}{more}{known}")
