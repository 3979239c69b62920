"""A job is a folder: what is to be done, events that are only ever added, and a lock that its process holds.

Whether a job runs is stored nowhere: the system gives the lock up with the process, whatever ended it. So pages, server
and machine may go down at any moment and nothing has to be put right afterwards.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .. import output_files

Seen = TypeVar("Seen")
ADAPTER = "adapter.safetensors"
"""An adapter's file in the folder of the job that made it."""
ENDINGS = {"queued": "waiting", "end": "done", "failed": "failed", "stopped": "stopped", "stop": "stopped"}
"""Last event of a job that does not run -> its state; any other: its process was killed, "interrupted"."""

_read: dict[Path, tuple[int, tuple[dict[str, Any], ...]]] = {}
"""{file of events: (bytes read, events)}, so that only what is new is read."""


@dataclass(frozen=True)
class Job:
    """A folder of a job."""

    folder: Path
    kind: str
    """Row of `job_worker.KINDS`."""
    title: str
    created: float
    """Seconds since 1970."""
    settings: Mapping[str, Any]
    """What the kind needs; names of files are those in the folder."""

    @property
    def id(self) -> str:
        return self.folder.name

    @classmethod
    def read(cls, folder: Path) -> Job:
        """The job of a folder."""
        return cls(folder, **json.loads((folder / "job.json").read_bytes()))

    @property
    def adapter(self) -> Path:
        return self.folder / ADAPTER

    @property
    def events(self) -> tuple[dict[str, Any], ...]:
        """All events so far, each with its "event" and "time". A line that is torn, by power loss, is no event."""
        path = self.folder / "events.jsonl"
        place, known = _read.get(path, (0, ()))
        with path.open("rb") as file:
            file.seek(place)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        if whole:
            known = (*known, *(found for line in whole.splitlines() if (found := _parse_event(line))))
            _read[path] = place + len(whole), known
        return known

    def add_event(self, event: str, **values: Any) -> None:
        """Add an event, in one write, so that processes do not mix theirs."""
        line = json.dumps({"event": event, "time": round(time.time(), 3), **values}) + "\n"
        with (self.folder / "events.jsonl").open("ab+") as file:
            if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                line = "\n" + line  # after a torn one
            file.write(line.encode())

    def last(self, event: str) -> dict[str, Any]:
        """The last event of a name; {} without one."""
        return next((x for x in reversed(self.events) if x["event"] == event), {})

    @property
    def running(self) -> bool:
        """Whether a process holds the lock."""
        with (self.folder / "lock").open("a") as file:
            return not _try_lock(file.fileno(), fcntl.LOCK_SH)

    @property
    def state(self) -> str:
        """ "waiting", "running", "done", "failed", "stopped" or "interrupted"."""
        return "running" if self.running else self._ended_as

    @property
    def _ended_as(self) -> str:
        """The state of a job that does not run."""
        return ENDINGS.get(self.events[-1]["event"] if self.events else "", "interrupted")

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop since it was last started, and may still write its checkpoint."""
        asked = [x["event"] for x in self.events if x["event"] in ("start", "stop")]
        return asked[-1:] == ["stop"]

    @property
    def device(self) -> str:
        """Where it runs or ran last; "" before."""
        return self.last("start").get("device", "")

    @property
    def losses(self) -> dict[int, float]:
        """{step: loss}; of a step that was done again, after a stop without checkpoint, the later."""
        return {x["step"]: x["loss"] for x in self.events if x["event"] == "step"}

    @property
    def previews(self) -> list[int]:
        """Steps that have a preview."""
        return sorted({x["step"] for x in self.events if x["event"] == "preview"})

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the job found, once it is done."""
        return self.last("end").get("result", {})

    def stop(self, at_once: bool = False) -> None:
        """Take a job from the queue, or ask its process to write a checkpoint and end.

        By SIGTERM: of a second SIGINT a training thinks that the first was not fast enough, and ends without one.

        Args: at_once: by SIGKILL, whatever it does; it can go on from the checkpoint before.
        """
        with (self.folder / "lock").open("r+") as file:
            if _try_lock(file.fileno(), fcntl.LOCK_EX):
                if self._ended_as == "waiting":
                    self.add_event("stopped", text="taken from the queue")
                return
            number = file.read()
            self.add_event("stop")
            if number:  # else it was started this moment, and looks for the event itself
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.kill(int(number), signal.SIGKILL if at_once else signal.SIGTERM)

    def requeue(self) -> None:
        """Put a job that has ended, or was ended, into the queue again. Raises ValueError: it is there, or runs."""
        if self.state in ("waiting", "running", "done"):
            raise ValueError(f"{self.title} is {self.state}: there is nothing to go on with")
        self.add_event("queued")


class WorkFolder:
    """The folder that the studio keeps everything in, and out of which it serves and writes nothing."""

    def __init__(self, folder: Path, local_bases: Sequence[str] = ()):
        self.folder, self.local_bases = folder.absolute(), list(local_bases)
        self.jobs_folder, self.bin = self.folder / "jobs", self.folder / "bin"
        self.pictures, self.drawings = self.folder / "pictures", self.folder / "drawings"
        for place in (self.jobs_folder, self.bin, self.pictures, self.drawings):
            place.mkdir(parents=True, exist_ok=True)

    def acquire_lock(self) -> int:
        """The descriptor of the lock of the one server of this folder. Raises ValueError: another server has it."""
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        if not _try_lock(lock, fcntl.LOCK_EX):
            os.close(lock)
            raise ValueError(f"a studio has {self.folder} open already: use that one, or another folder")
        return lock

    def token(self) -> str:
        """The secret of this folder's addresses, the same at each start, so that an open page goes on working."""
        path = self.folder / "token"
        if not path.exists():
            with output_files.atomic(path) as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(secrets.token_urlsafe(24).encode())
        return path.read_text()

    def jobs(self) -> list[Job]:
        """All jobs, the newest first."""
        found = [job for place in self.jobs_folder.iterdir() if (job := _read_job(place))]
        return sorted(found, key=lambda job: (-job.created, job.id))

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
        return [job for place in self.bin.iterdir() if (job := _read_job(place))]

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

    def empty_bin(self) -> None:
        """Remove what was deleted, for good."""
        for job in self.in_bin():
            shutil.rmtree(job.folder)

    def _move_job(self, job: Job, place: Path) -> None:
        """Move a job's folder into the bin, or out of it. Raises ValueError: the job runs."""
        with (job.folder / "lock").open("a") as file:
            if not _try_lock(file.fileno(), fcntl.LOCK_EX):
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


def acquire_job_lock(job: Job) -> int | None:
    """The descriptor of a job's lock, for its process to inherit; None: somebody has it."""
    lock = os.open(job.folder / "lock", os.O_RDWR)
    if _try_lock(lock, fcntl.LOCK_EX):
        return lock
    os.close(lock)
    return None


def _try_lock(descriptor: int, how: int) -> bool:
    """Whether the lock file of a job or work folder could be locked."""
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_job(folder: Path) -> Job | None:
    """The job in a folder; None: it is no job's folder."""
    if not re.fullmatch("[0-9a-f]{12}", folder.name) or folder.is_symlink():
        return None
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # half made, or in the bin by now
        return Job.read(folder)
    return None


def _parse_event(line: bytes) -> dict[str, Any] | None:
    """A line of a job's events.jsonl; None: it is torn."""
    try:
        return json.loads(line)
    except ValueError:  # torn
        return None
