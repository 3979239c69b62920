"""The folder that the studio keeps everything in: its jobs and bin, images, token and the lock of its server."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .. import output_files
from .jobs import LOCKS, Job, try_lock

Seen = TypeVar("Seen")


class WorkFolder:
    """The folder that the studio keeps everything in, and out of which it serves and writes nothing."""

    def __init__(self, folder: Path, local_bases: Sequence[str] = ()):
        self.folder, self.local_bases = folder.absolute(), list(local_bases)
        self._known: dict[Path, Job] = {}
        self.jobs_folder, self.bin = self.folder / "jobs", self.folder / "bin"
        self.pictures, self.drawings = self.folder / "pictures", self.folder / "drawings"
        for place in (self.jobs_folder, self.bin, self.pictures, self.drawings):
            place.mkdir(parents=True, exist_ok=True)

    def acquire_lock(self) -> int:
        """The lock of the one server of this work folder, as a descriptor. Raises ValueError: another has it."""
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        if not try_lock(lock, fcntl.LOCK_EX):
            os.close(lock)
            raise ValueError(f"a studio has {self.folder} open already: use that one, or another folder")
        return lock

    def token(self) -> str:
        """The secret of this work folder's addresses, the same at each start, so that open pages go on working."""
        path = self.folder / "token"
        if not path.exists():
            with output_files.atomic(path) as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(secrets.token_urlsafe(24).encode())
        return path.read_text()

    def jobs(self) -> list[Job]:
        """All jobs, the newest first."""
        return self._jobs_in(self.jobs_folder)

    def _jobs_in(self, place: Path) -> list[Job]:
        """Jobs of a folder, the newest first. What a job is to do never changes, so it is read once."""
        folders = [place / name for name in os.listdir(place)]
        found = {folder: job for folder in folders if (job := self._known.get(folder) or _read_job(folder))}
        self._known = {folder: job for folder, job in self._known.items() if folder.parent != place} | found
        return sorted(found.values(), key=lambda job: (-job.created, job.id))

    def job(self, name: str) -> Job | None:
        """A job by its id; None: there is none, whatever the name looks like."""
        return next((job for job in self.jobs() if job.id == name), None)

    def each_job(self, seen: Callable[[Job], Seen]) -> list[Seen]:
        """What a function finds of every job, the newest first, but those that go to the bin meanwhile."""
        found = []
        for job in self.jobs():
            with contextlib.suppress(FileNotFoundError):
                found.append(seen(job))
        return found

    def in_bin(self) -> list[Job]:
        """Jobs that were deleted."""
        return self._jobs_in(self.bin)

    def create(self, kind: str, title: str, settings: Mapping[str, Any], files: Mapping[str, bytes | Path] = {}) -> Job:
        """A new job in the queue.

        Args: files: {name in its folder: content, or a file to move there}.
        """
        job = Job(self.jobs_folder / secrets.token_hex(6), kind, title, time.time(), settings)
        job.folder.mkdir()
        try:
            for name, content in files.items():
                if isinstance(content, Path):
                    os.replace(content, job.folder / name)
                else:
                    (job.folder / name).write_bytes(content)
            (job.folder / "lock").touch()
            job.add_event("queued")
            record = {"kind": kind, "title": title, "created": job.created, "settings": settings}
            with output_files.atomic(job.folder / "job.json") as file:  # last: a folder without it is no job
                file.write(json.dumps(record, indent=1).encode())
        except OSError:  # such as a full disk
            shutil.rmtree(job.folder)
            raise
        return job

    def delete(self, job: Job) -> None:
        """Move a job to the bin. Raises ValueError: it runs."""
        self._move_job(job, self.bin)

    def restore(self, job: Job) -> None:
        """Take a job out of the bin."""
        self._move_job(job, self.jobs_folder)

    def discard(self, job: Job) -> None:
        """Remove a job for good. Raises ValueError: it runs."""
        self._move_job(job, self.bin)
        shutil.rmtree(self.bin / job.id)

    def empty_bin(self) -> None:
        """Remove what was deleted, for good."""
        for job in self.in_bin():
            shutil.rmtree(job.folder)

    def _move_job(self, job: Job, place: Path) -> None:
        """Move a job's folder into the bin, or out of it. Raises ValueError: the job runs."""
        with LOCKS, (job.folder / "lock").open("a") as file:
            if not try_lock(file.fileno(), fcntl.LOCK_EX):
                raise ValueError(f"{job.title} runs: stop it first")
            job.folder.rename(place / job.id)

    def adapters(self) -> list[Job]:
        """Jobs that have made an adapter."""
        kinds = ("train", "merge", "import")
        found = self.each_job(lambda job: job if job.kind in kinds and job.state == "done" else None)
        return [job for job in found if job]

    def served_file(self, *parts: str) -> Path:
        """A file in the work folder that is to be served.

        Raises: FileNotFoundError: there is none, or it leads out of this folder, by a link or otherwise.
        """
        path = self.folder.joinpath(*parts)
        real = Path(os.path.realpath(path))
        if not real.is_relative_to(os.path.realpath(self.folder)) or not real.is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return path

    def read_json(self, name: str) -> dict[str, Any]:
        """What is kept under a name; {} before anything is."""
        path = self.folder / name
        return json.loads(path.read_bytes()) if path.exists() else {}

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Keep something under a name."""
        with output_files.atomic(self.folder / name) as file:
            file.write(json.dumps(values, indent=1).encode())


def _read_job(folder: Path) -> Job | None:
    """The job in a folder; None: it is no job's folder."""
    if not re.fullmatch("[0-9a-f]{12}", folder.name) or folder.is_symlink():
        return None
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # half made, or in the bin by now
        return Job.read(folder)
    return None
