"""Names of adapter files: they say what is in them, fit every file system, and are each of one adapter alone."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ..adapter import Header
from ..files import read_header

READABLE, DIGITS = 160, 8
"""Bytes of a name that are to read, and digits of its digest: file systems have 255 bytes for these and for what is
added while a file is written."""


def adapter_path(folder: Path, name: Sequence[str], is_named_so: Callable[[Header], bool]) -> Path:
    """The path of an adapter in a folder, whether it is there or not.

    Args:    name: what tells the adapter from all others.
             is_named_so: whether an adapter's header agrees with the name.  Earlier versions wrote names without a
             digest, which some adapters shared whose names differ in punctuation alone.
    """
    readable = "".join(x if x.isalnum() else "-" for x in "-".join(name))
    earlier = folder / f"{readable}.safetensors"
    # os.path.isfile: the name may be longer than a file's can be, which Path.is_file takes for an error
    if os.path.isfile(earlier) and is_named_so(read_header(earlier)):
        return earlier
    digest = hashlib.sha256("\n".join(name).encode()).hexdigest()[:DIGITS]
    return folder / f"{readable.encode()[:READABLE].decode(errors='ignore')}-{digest}.safetensors"
