"""The file that a run writes: tried beforehand, known again where it is there already, kept in any case at the end."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import output_files
from ..adapter import Adapter, Header
from ..basis import cache_folder
from ..config import TrainConfig, as_dict
from ..families import Base
from ..files import load, read_header, save, size_in_bytes
from ..methods import METHODS
from .checkpoint import FILE
from .distributed import is_rank_zero
from .run_identity import ELSEWHERE

RUN = "run"
"""Entry of a header's config: what the run is known by."""


def name_of(identity: Mapping[str, Any], steps: int) -> str:
    """What a run is known by (hex): all that it is repeated from, and its length."""
    return hashlib.sha256(json.dumps({**identity, "steps": steps}, sort_keys=True).encode()).hexdigest()[:16]


def try_places(config: TrainConfig) -> None:
    """That a run can write its files, before a base is opened; of several processes the main one tries.

    Raises: OSError: output, checkpoint or log cannot be written.
            FileExistsError: the output is there, of other settings, and may not be replaced.
    """
    output = Path(config.output)
    if output.is_file() and not config.overwrite and not _may_be(output, config):
        output_files.check(output)
    if is_rank_zero():
        folders = [output.with_suffix(".tensorboard")] if config.tensorboard else []
        for path in (output, config.checkpoints / FILE, *(folder / FILE for folder in folders)):
            output_files.check(path, overwrite=True)


def try_size(config: TrainConfig, base: Base) -> None:
    """That the adapter fits where it is to be written, once its layers are known. Raises OSError: too little space."""
    if not is_rank_zero():
        return
    assert config.rank is not None and config.targets is not None
    row = METHODS.get(config.method)
    rank = config.rank if row is not None and row.frozen_side else 2 * config.rank
    shapes = {name: (x.out_features, x.in_features) for name, x in base.target_layers(config.targets).items()}
    header = Header(family=base.family.name, part=base.family.part, method=config.method, rank=rank)
    output_files.check(config.output, overwrite=True, size=size_in_bytes(shapes, header))


def finished(config: TrainConfig, run: str) -> Adapter | None:
    """The adapter that this very run has written before; None: it is still to be learnt.

    Raises: FileExistsError: another file is in its place, and may not be replaced.
    """
    if config.overwrite or not Path(config.output).exists():
        return None
    if _header(Path(config.output)).config.get(RUN) == run:
        return load(config.output)
    output_files.check(config.output)
    return None


def keep(adapter: Adapter, config: TrainConfig) -> None:
    """Write an adapter to its output; what was learnt is not lost where that is impossible.

    Raises: OSError: it is not there, but beside the checkpoint, in the cache or among temporary files: told where.
    """
    folders = [config.checkpoints, cache_folder().parent, Path(tempfile.gettempdir())]
    output_files.rescued(lambda path: save(adapter, path, overwrite=config.overwrite), Path(config.output), folders)


def _may_be(path: Path, config: TrainConfig) -> bool:
    """Whether a file can be what a run with these settings wrote, as far as they say without its base."""
    told = _header(path).config
    own = {name: value for name, value in as_dict(config).items() if name not in ELSEWHERE and value is not None}
    own["image"] = Path(config.image).name
    chosen = own.items() - {("dtype", "auto")}
    return RUN in told and all(told.get(name) == value for name, value in chosen)


def _header(path: Path) -> Header:
    """A file's header; one that says nothing of a file that is none of ours."""
    try:
        return read_header(path)
    except ValueError:
        return Header()
