"""Folders of models: a VAE that is opened from one; a model that is written into one, whole or not at all, and over
another model only where that was asked for."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from diffusers import AutoencoderTiny

from ..families.library_messages import config_errors_in_one_line, opening_errors_in_one_line
from ..json_objects import read_json_object
from ..output_files import check_writable, fsync_if_supported
from ..temporary_files import temporary_folder

INDEX, CONFIG = "model_index.json", "config.json"
"""What every folder of a pipeline has, and every folder of a single model."""
BASE_FILES = (INDEX, "qrlora.json", "training.json", "scores.json", "README.md")
MODEL_FILES = (CONFIG, "diffusion_pytorch_model.safetensors")


def open_vae(folder: Path) -> AutoencoderTiny:
    """The VAE in a folder, in float32. Raises: OSError, ValueError: there is none of a built-in base's class."""
    config = folder / CONFIG
    if not config.is_file() or read_json_object(config).get("_class_name") != AutoencoderTiny.__name__:
        raise ValueError(f"{folder} is no folder of an {AutoencoderTiny.__name__}, as the VAEs of built-in bases are")
    with opening_errors_in_one_line(str(folder), "VAE"), config_errors_in_one_line(folder):
        return AutoencoderTiny.from_pretrained(folder).float()


def check_replaceable(folder: Path, overwrite: bool) -> None:
    """Check that a model can be written to a folder, before it is trained.

    Raises: FileExistsError: a model is there, which may not be replaced.  ValueError: something else is there, which is
            never replaced.  OSError: nothing can be written there.
    """
    if folder.is_dir() and any(folder.iterdir()):
        if others := _other_content(folder):
            raise ValueError(f"{folder} holds {others[0]}, which is no part of a model: give --output another folder")
        if not overwrite:
            hint = "is there already: --overwrite replaces it, --output FOLDER writes elsewhere"
            raise FileExistsError(errno.EEXIST, hint, str(folder))
    elif folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is no folder", str(folder))
    check_writable(_resolved(folder).parent / INDEX, overwrite=True)


def _resolved(folder: Path) -> Path:
    """A folder's own path: a link to it stays, the folder behind it is replaced."""
    return Path(os.path.realpath(folder))


def _other_content(folder: Path) -> list[str]:
    """The names in a folder that are no part of a model or pipeline; all of them if none is there."""
    names = {path.name for path in folder.iterdir()}
    if INDEX in names:
        parts = {name for name, kind in read_json_object(folder / INDEX).items() if isinstance(kind, list)}
        names -= {*BASE_FILES, *parts}
    elif CONFIG in names:
        names -= {*MODEL_FILES}
    return sorted(names)


@contextlib.contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A new folder to write a model into, which takes the place of another at the end of a `with`, or not at all.

    It lies beside its place until it is whole. The folder of before is removed with all that it holds:
    `check_replaceable` says whether it may be. No system exchanges two folders in one step: who is killed in the
    instant between two renames leaves neither.

    Raises: OSError: it cannot be written; what was there is as it was.
    """
    folder = _resolved(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(folder) as work:
        new, old = work / "new", work / "old"
        new.mkdir()
        yield new
        for path in new.rglob("*"):
            if path.is_file():
                with path.open("r+b") as file:
                    fsync_if_supported(file)
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise
