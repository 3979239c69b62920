"""A job is a folder: what is to be done, events that are only ever added, and a lock that its process holds.

Whether a job runs is stored nowhere: the system gives the lock up with the process, whatever ended it. So pages, server
and machine may go down at any moment and nothing has to be put right afterwards.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        """All events of a job so far, each with its "event" and "time". A line that is torn, by power loss, is no
        event."""
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
        """Add an event to a job, in one write, so that processes do not mix theirs."""
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
            return not try_lock(file.fileno(), fcntl.LOCK_SH)

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
            if try_lock(file.fileno(), fcntl.LOCK_EX):
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


def acquire_job_lock(job: Job) -> int | None:
    """The descriptor of a job's lock, for its process to inherit; None: somebody has it."""
    lock = os.open(job.folder / "lock", os.O_RDWR)
    if try_lock(lock, fcntl.LOCK_EX):
        return lock
    os.close(lock)
    return None


def try_lock(descriptor: int, how: int) -> bool:
    """Whether the lock file of a job or work folder could be locked."""
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _parse_event(line: bytes) -> dict[str, Any] | None:
    """A line of a job's events.jsonl; None: it is torn."""
    try:
        return json.loads(line)
    except ValueError:  # torn
        return None
