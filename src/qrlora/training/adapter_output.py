"""The adapter file of a run: checked to be writable before it, recognised if the run is done, saved at its end."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import output_files
from ..adapter import Adapter, Header
from ..basis import cache_folder
from ..config import TrainConfig, as_stored_dict
from ..families import Base
from ..files import load, read_header, save, size_in_bytes
from ..initialisation_methods import METHODS
from .checkpoint import CHECKPOINT_FILE
from .distributed import is_rank_zero
from .run_identity import NOT_IN_HEADER
from .training_images import TrainingImage, names_text

RUN_ENTRY = "run"
"""Entry of a header's config that holds the run's digest."""


def run_digest(identity: Mapping[str, Any], steps: int) -> str:
    """Digest of a run (hex): of its `run_identity` and its steps."""
    return hashlib.sha256(json.dumps({**identity, "steps": steps}, sort_keys=True).encode()).hexdigest()[:16]


def check_outputs_writable(config: TrainConfig, images: Sequence[TrainingImage]) -> None:
    """Check, before a base is opened, that a run can write its files; of several processes, rank 0 does.

    Raises: OSError: output, checkpoint or log cannot be written.
            FileExistsError: the output exists, is of other settings, and may not be overwritten.
    """
    output = Path(config.output)
    if output.is_file() and not config.overwrite:
        if not _may_be_of_run(output, config, images):
            output_files.check_writable(output)
        return  # this very run has ended, or is refused once its base is open: nothing will be written
    if is_rank_zero():
        folders = [output.with_suffix(".tensorboard")] if config.tensorboard else []
        for path in (output, config.checkpoints / CHECKPOINT_FILE, *(folder / CHECKPOINT_FILE for folder in folders)):
            output_files.check_writable(path, overwrite=True)


def check_adapter_fits(config: TrainConfig, base: Base) -> None:
    """Check that the run's adapter files fit on the disk, once their layers are known. Raises OSError: too little
    space."""
    if not is_rank_zero():
        return
    assert config.rank is not None and config.targets is not None
    row = METHODS.get(config.method)
    rank = config.rank if row is not None and row.frozen_side else 2 * config.rank
    shapes = {name: (x.out_features, x.in_features) for name, x in base.target_layers(config.targets).items()}
    header = Header(family=base.family.name, component=base.family.component, method=config.method, rank=rank)
    size = size_in_bytes(shapes, header) * (1 + len(saved_steps(config)))
    output_files.check_writable(config.output, overwrite=True, size=size)


def file_of_step(config: TrainConfig, step: int) -> Path:
    """Where the adapter of an update is written, see `TrainConfig.adapter_every`."""
    output = Path(config.output)
    return output.with_name(f"{output.stem}-{step:05}{output.suffix}")


def saved_steps(config: TrainConfig) -> range:
    """The updates whose adapters are written before the last."""
    assert config.steps is not None
    return range(config.adapter_every, config.steps, config.adapter_every) if config.adapter_every else range(0)


def header_of_step(header: Header, config: TrainConfig, inputs: Mapping[str, Any], step: int) -> Header:
    """The header of the adapter after an update: that of a run of so many steps, which it is, where the learning rate
    does not fall; where it falls, with the steps of the whole run and the entry "step"."""
    assert config.steps is not None
    if not config.lr_decay or step == config.steps:
        entries = {"steps": step, RUN_ENTRY: run_digest(inputs, step)}
    else:
        entries = {"step": step, RUN_ENTRY: run_digest({**inputs, "step": step}, config.steps)}
    return replace(header, config={**header.config, **entries})


def check_step_files(config: TrainConfig, inputs: Mapping[str, Any]) -> None:
    """Raises FileExistsError: an adapter of an update would replace another run's, and may not."""
    for step in saved_steps(config) if not config.overwrite else ():
        path = file_of_step(config, step)
        run = header_of_step(Header(), config, inputs, step).config[RUN_ENTRY]
        if path.exists() and _header_or_empty(path).config.get(RUN_ENTRY) != run:
            output_files.check_writable(path)


def save_adapter_of_step(adapter: Adapter, config: TrainConfig, step: int) -> None:
    """Write the adapter after an update; a warning, and the training goes on, if it cannot be written."""
    with output_files.warn_if_unwritable(f"the training goes on without the adapter of step {step}"):
        save(adapter, file_of_step(config, step), overwrite=True)


def load_finished_adapter(config: TrainConfig, run: str) -> Adapter | None:
    """The adapter if this very run has already written it; None: it is still to be trained.

    Raises: FileExistsError: another file is there and may not be overwritten.
    """
    if config.overwrite or not Path(config.output).exists():
        return None
    if _header_or_empty(Path(config.output)).config.get(RUN_ENTRY) == run:
        return load(config.output)
    output_files.check_writable(config.output)
    return None


def save_adapter(adapter: Adapter, config: TrainConfig) -> None:
    """Write an adapter to its output or, where that fails, to the checkpoint's folder, the cache or a temporary folder.

    Raises: OSError: it could not be written to its output; the message names the file that has it instead.
    """
    folders = [config.checkpoints, cache_folder().parent, Path(tempfile.gettempdir())]
    output_files.write_or_rescue(
        lambda path: save(adapter, path, overwrite=config.overwrite), Path(config.output), folders
    )


def settings_in_header(config: TrainConfig, images: Sequence[TrainingImage]) -> dict[str, Any]:
    """The settings that an adapter's header holds: those that change it, and names of image files."""
    values = {name: value for name, value in as_stored_dict(config).items() if name not in NOT_IN_HEADER}
    if len(images) > 1:
        values["images"] = len(images)
    if masks := [image.mask for image in images if image.mask]:
        values["mask"] = names_text(masks)
    return {**values, "image": names_text([image.path for image in images])}


def _may_be_of_run(path: Path, config: TrainConfig, images: Sequence[TrainingImage]) -> bool:
    """Whether a file can be the output of a run with these settings, as far as its header shows without the base."""
    config_in_file = _header_or_empty(path).config
    settings = {x: value for x, value in settings_in_header(config, images).items() if value is not None}
    if config.dtype == "auto":
        del settings["dtype"]
    return RUN_ENTRY in config_in_file and all(config_in_file.get(name) == value for name, value in settings.items())


def _header_or_empty(path: Path) -> Header:
    """The header of a file in the place of the run's output; an empty one if the file is no adapter."""
    try:
        return read_header(path)
    except ValueError:
        return Header()
