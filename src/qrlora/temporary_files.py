"""Temporary files of writers that may be killed: whoever next writes into their folder removes what the dead left.

A temporary file is locked for as long as its writer lives. The system gives the lock up with the process, whatever
ended it, so that a lock distinguishes the living from the dead where a process number, which is used again, would not.
"""

import contextlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has other locks, under which a file cannot be renamed: there nothing is removed
    fcntl = None

NAME = re.compile(r"\..+\.[0-9a-f]{8}\.partial")
"""What a temporary file is called: the name that it is to get, hidden, and something that no other has."""
FOLDER_ENDING = ".folder"
"""Ending of a folder that lives as long as the temporary file of its name."""


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A new and empty file beside `path` for the length of a `with`; at its end it is removed, unless it was renamed.

    The temporary files that dead processes left in that folder are removed first.

    Raises: OSError: it cannot be made.
    """
    remove_stale(path.parent)
    partial, lock = _create_locked(path)
    try:
        yield partial
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if lock is not None:
            os.close(lock)


@contextlib.contextmanager
def temporary_folder(beside: Path | None = None) -> Iterator[Path]:
    """A new and empty folder for the length of a `with`; those that dead processes left there are removed first.

    Args:   beside: a path that it lies beside, so that what is made in it can be renamed to that; None: among the
            system's temporary files, for this user alone.
    Raises: OSError: it cannot be made.
    """
    with temporary(beside or Path(tempfile.gettempdir()) / "qrlora") as mark:
        folder = Path(f"{mark}{FOLDER_ENDING}")
        folder.mkdir(mode=0o777 if beside else 0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


def remove_stale(folder: Path) -> None:
    """Remove the temporary files of dead processes, and the folders beside them.

    What cannot be recognised or removed, as on a file system without locks, stays: it is in nobody's way.
    """
    if fcntl is None:
        return
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        left = [entry.path for entry in entries if NAME.fullmatch(entry.name)]
        for path in left:
            with contextlib.suppress(OSError), open(path, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.isdir(path + FOLDER_ENDING):
                    shutil.rmtree(path + FOLDER_ENDING)  # which follows no link
                os.unlink(path)


def _create_locked(path: Path) -> tuple[Path, int | None]:
    """Create a temporary file: A new file beside `path`, and the descriptor that holds its lock; another one if a
    neighbour who clears was faster than the lock."""
    while True:
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        lock = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if fcntl is None:
            os.close(lock)
            return partial, None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        except OSError:  # a file system without locks, where nobody clears either
            return partial, lock
        if partial.exists():
            return partial, lock
        os.close(lock)
