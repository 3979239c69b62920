"""Image files of verbs that draw: tried beforehand, numbered where one is there, kept if the disk fills."""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from .. import output_files
from ..config import SampleConfig
from .adapter_files import with_own_name


def single_images(output: Path, seeds: Sequence[int]) -> list[Path]:
    """Where the images of a sheet lie, beside it."""
    return [output.with_stem(f"{output.stem}-{seed}") for seed in seeds] if len(seeds) > 1 else []


def free_path(config: SampleConfig, seeds: Sequence[int]) -> Path:
    """The output, under the next number if one of its files is there and may not be replaced; a folder is refused."""
    output = Path(config.output)
    return output if config.overwrite or output.is_dir() else output_files.first_free_name(output, any_exists(seeds))


def any_exists(seeds: Sequence[int]) -> Callable[[Path], bool]:
    """(output) -> whether it or one of the single images beside it exists."""
    return lambda output: any(map(os.path.lexists, (output, *single_images(output, seeds))))


def check_image_output(config: SampleConfig, seeds: Sequence[int] = ()) -> None:
    """Raises OSError: the image files that will be drawn could not be written."""
    output = free_path(config, seeds)
    for path in (output, *single_images(output, seeds)[-1:]):
        output_files.check_writable(path, config.overwrite)


def write_image_output(write: Callable[[Path], object], config: SampleConfig, seeds: Sequence[int] = ()) -> Path:
    """Write image files that were drawn; returns where they are.

    Raises: OSError: it could not be written there; it is in the folder for temporary files, as the message says.
    """
    output = free_path(config, seeds)
    output_files.write_or_rescue(write, output, [Path(tempfile.gettempdir())], any_exists(seeds))
    return output


def sampling_footer(config: SampleConfig) -> str:
    """The line under drawn images: the adapters, strengths and settings that they were made with."""
    names = " + ".join(with_own_name(path).stem for path in config.adapters) or "no adapter"
    strengths = f" at {', '.join(f'{x:g}' for x in config.strengths)}" if set(config.strengths) - {1.0} else ""
    sampling = f"{config.steps} steps, guidance {config.guidance:g}, seed {config.seed}"
    return f"{names}{strengths} on {config.base}, {sampling}"
