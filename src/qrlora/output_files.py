"""Files that are written: whole or not at all on any file system, tried before long work, over no other unasked."""

import contextlib
import errno
import filecmp
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from .temporary_files import temporary

UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
"""Errors of a file system for a call that it does not have: fsync on some network and FUSE ones, reserving space."""
NO_RENAME_OVER = UNSUPPORTED | {errno.EEXIST, errno.EPERM, errno.EACCES, errno.EBUSY, errno.EXDEV}
"""Its errors for a rename over an existing file: FAT and some network ones refuse it, a mounted file is busy."""
NOTHING_WRITTEN = "; nothing was written to"
MIN_FREE_BYTES = 1 << 16
"""Bytes that are reserved for an output before its size is known."""
EXISTS_HINT = "is there already: --overwrite replaces it (in a recipe: overwrite = true)"


@contextlib.contextmanager
def atomic(path: str | os.PathLike, overwrite: bool = True) -> Iterator[BinaryIO]:
    """A file to write to that appears at path complete, or not at all; missing folders are made.

    Writes a temporary file in the same folder, fsyncs it and renames it. An error, a full disk or Ctrl-C removes the
    temporary file, and folders made for it, and leaves what was at path as it was; one that a killed process left is
    removed by the next that writes there. A link stays, its target is replaced. Where the file system knows no fsync,
    or no rename over a file, it is done as safely as it allows: see `_rename_into_place`.

    Args:   overwrite: whether an existing file may be replaced; if not, one that has this very content is left alone.
    Raises: OSError with the path: no space, no permission, path is a folder.
            FileExistsError: a file with another content, which may not be replaced.
    """
    target = Path(os.path.realpath(path))
    made: Sequence[Path] = ()
    try:
        _refuse_folders_and_devices(target)
        made = _missing_folders(target.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary(target) as partial:
            with partial.open("r+b") as file:
                yield file
                file.flush()
                fsync_if_supported(file)
            if overwrite:
                _rename_into_place(partial, target)
            elif not _link_unless_taken(partial, target) and not filecmp.cmp(partial, target, shallow=False):
                raise FileExistsError(errno.EEXIST, EXISTS_HINT)
    except BaseException as error:
        for folder in made:
            with contextlib.suppress(OSError):  # not there, or not empty: somebody else uses it
                folder.rmdir()
        if isinstance(error, OSError):
            raise OSError(error.errno, _with_nothing_written(error), str(path)) from error
        raise


def check_writable(path: str | os.PathLike, overwrite: bool = False, size: int = MIN_FREE_BYTES) -> None:
    """That an output can be written, tried before work that takes long: the temporary file of `atomic` is made, space
    for the size in bytes is claimed in it, and it is removed again.

    Raises: OSError: as `atomic`, a name too long for the temporary file, too little space.
            FileExistsError: path exists and may not be replaced, with the hint.
    """

    class SpaceReserved(Exception):
        pass

    if not overwrite and os.path.isfile(path):
        raise FileExistsError(errno.EEXIST, EXISTS_HINT, str(path))
    with contextlib.suppress(SpaceReserved), atomic(path) as file:
        reserve_space(file, size)
        raise SpaceReserved


def reserve_space(file: BinaryIO, size: int) -> None:
    """Reserve the space of an output file at once where the system can: a full disk shows before writing, which is 4 x
    faster so.

    Raises: OSError: no space.
    """
    usage = shutil.disk_usage(os.path.dirname(file.name))
    if usage.total and usage.free < size:  # some network file systems report nothing
        short = f"{size / 1e6:.1f} MB needed, {usage.free / 1e6:.1f} MB free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({short})")
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise


def first_free_name(path: str | os.PathLike, taken: Callable[[Path], bool] = os.path.lexists) -> Path:
    """The output's path itself, or the first of `name_2.png`, `name_3.png` ... that is not taken."""
    path, number = Path(path), 1
    found = path
    while taken(found):
        number += 1
        found = path.with_stem(f"{path.stem}_{number}")
    return found


def write_or_rescue(
    write: Callable[[Path], object],
    path: Path,
    folders: Sequence[Path],
    taken: Callable[[Path], bool] = os.path.lexists,
) -> None:
    """Write a result of long work: at path, else under its name in the first of other folders that takes it.

    Args:   taken: as for `first_free_name`, in those folders.
    Raises: OSError: it is not at path; the message says where it is instead.
    """
    try:
        write(path)
    except OSError as error:
        for folder in folders:
            kept = first_free_name(folder / path.name, taken)
            try:
                write(kept)
            except OSError:
                continue
            message = f"{(error.strerror or str(error)).removesuffix(NOTHING_WRITTEN)}; what was made is kept as {kept}"
            raise OSError(error.errno, message, str(path)) from error
        raise


@contextlib.contextmanager
def warn_if_unwritable(consequence: str) -> Iterator[None]:
    """An OSError while something dispensable is written, as a cache, becomes a warning that says what follows."""
    try:
        yield
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        warnings.warn(f"{place}{error.strerror or error}; {consequence}", stacklevel=3)


def _with_nothing_written(error: OSError) -> str:
    """An error of writing as one that says what is wrong, and that nothing was written."""
    if isinstance(error, FileExistsError):
        return error.strerror or str(error)
    if error.errno == errno.ENAMETOOLONG:
        return f"the name is too long, with what is added while it is written{NOTHING_WRITTEN}"
    return f"{error.strerror or error}{NOTHING_WRITTEN}"


def _refuse_folders_and_devices(path: Path) -> None:
    """Raises OSError: a folder, a pipe, a device is at path."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder, a file name is needed")
    if os.path.lexists(path) and not path.is_file():
        raise OSError(errno.EINVAL, "is no ordinary file")


def _missing_folders(folder: Path) -> list[Path]:
    """The folder of an output and those above it that are not there, innermost first. Raises OSError: one of them is a
    file."""
    missing = []
    for place in (folder, *folder.parents):
        if place.is_dir():
            break
        if os.path.lexists(place):
            raise NotADirectoryError(errno.ENOTDIR, f"{place} is no folder")
        missing.append(place)
    return missing


def fsync_if_supported(file: BinaryIO) -> None:
    """fsync an open file, where the file system has it."""
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def _link_unless_taken(partial: Path, path: Path) -> bool:
    """Give a whole file its name unless there is a file of that name; whether it was given.

    A hard link is made or refused in one step, so that of two writers who end at one moment one is refused. A file
    system without hard links is looked at first, which is as safe as it allows.
    """
    try:
        os.link(partial, path)
    except FileExistsError:
        return False
    except OSError:
        if path.exists():
            return False
        _rename_into_place(partial, path)
    return True


def _rename_into_place(partial: Path, path: Path) -> None:
    """Rename a whole file to its name. Where none can be renamed over another, the old one steps aside first, and where
    none can be renamed at all, a copy of the old one is kept until the new content is in its place.

    Raises: OSError: nothing works; path is as it was.
    """
    try:
        os.replace(partial, path)
    except OSError as error:
        if error.errno not in NO_RENAME_OVER:
            raise
        aside = partial.with_suffix(".replaced")
        if not (_move_old_aside(partial, path, aside) or _copy_into_place(partial, path, aside)):
            raise


def _move_old_aside(partial: Path, path: Path, aside: Path) -> bool:
    """Whether the old file could be renamed, and the new one after it."""
    try:
        os.rename(path, aside)
    except OSError:
        return False
    try:
        os.rename(partial, path)
    except OSError:
        os.rename(aside, path)
        return False
    aside.unlink()
    return True


def _copy_into_place(partial: Path, path: Path, aside: Path) -> bool:
    """Whether the new content could be written in place; if not, the old one is there again.

    Raises: OSError: half of the new content is in its place, and the old one could not be put back; the message names
            its copy.
    """
    old = path.exists()
    try:
        if old:
            with aside.open("xb") as copy:
                _overwrite_content(copy, path)
        there = path.open("r+b" if old else "xb")
    except OSError:
        aside.unlink(missing_ok=True)
        return False
    with there:
        try:
            _overwrite_content(there, partial)
        except OSError as error:
            if not old:
                path.unlink()
                return False
            try:
                _overwrite_content(there, aside)
            except OSError:
                raise OSError(error.errno, f"{error.strerror}; what was there before is kept as {aside}") from error
            aside.unlink()
            return False
    aside.unlink(missing_ok=True)
    partial.unlink()
    return True


def _overwrite_content(file: BinaryIO, source: Path) -> None:
    """Overwrite an open output file with the content of another."""
    with source.open("rb") as content:
        file.seek(0)
        shutil.copyfileobj(content, file)
    file.truncate()
    file.flush()
    fsync_if_supported(file)
