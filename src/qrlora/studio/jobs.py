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
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ADAPTER = "adapter.safetensors"
"""An adapter's file in the folder of the job that made it."""
ENDINGS = {"queued": "waiting", "end": "done", "failed": "failed", "stopped": "stopped", "stop": "stopped"}
"""Last event of a job that does not run -> its state; any other: its process was killed, "interrupted"."""

TAIL = 64 * 1024
"""Bytes of the end of a file of events in which the last one is looked for."""
LOCKS = threading.RLock()
"""Held while this process tries a job's lock, so that one look is not taken for a running job by another."""


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
    _seen: dict[str, tuple[int, Any]] = field(default_factory=dict, repr=False, compare=False)
    """What was read of its events, with the bytes up to which that holds: they are only ever added to."""

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
    def size(self) -> int:
        """Bytes of its events: as long as it is the same, nothing has happened."""
        return os.stat(self.folder / "events.jsonl").st_size

    @property
    def events(self) -> tuple[dict[str, Any], ...]:
        """All events of a job so far, each with its "event" and "time". A line that is torn, by power loss, is no
        event."""
        place, known = self._seen.get("events", (0, ()))
        if self.size > place:
            with (self.folder / "events.jsonl").open("rb") as file:
                file.seek(place)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            known = (*known, *_parse_events(whole.splitlines()))
            self._seen["events"] = place + len(whole), known
        return known

    @property
    def last_event(self) -> dict[str, Any]:
        """The last of all events but warnings, read from the end of the file; {} without one."""
        size, known = self.size, self._seen.get("last", (-1, {}))
        if known[0] != size:
            with (self.folder / "events.jsonl").open("rb") as file:
                file.seek(max(0, size - TAIL))
                tail = file.read(TAIL)
            events = _parse_events(reversed(tail[: tail.rfind(b"\n") + 1].splitlines()))
            last = next((x for x in events if x["event"] != "warning"), None)
            known = size, last or next((x for x in reversed(self.events) if x["event"] != "warning"), {})
            self._seen["last"] = known
        return known[1]

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
        with LOCKS, (self.folder / "lock").open("a") as file:
            return not try_lock(file.fileno(), fcntl.LOCK_SH)

    @property
    def state(self) -> str:
        """ "waiting", "running", "done", "failed", "stopped" or "interrupted".

        Whoever takes the lock adds an event, so the lock of a job that rests is looked at once, until its next event.
        """
        while (seen := self._seen.get("rests", (-1, "")))[0] != (size := self.size):
            name = self.last_event.get("event", "")
            if self.running:
                return "running"
            if size == self.size:  # else it has ended between the two looks
                self._seen["rests"] = size, ENDINGS.get(name, "interrupted")
        return seen[1]

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
        return sorted(int(path.stem.removeprefix("preview-")) for path in self.folder.glob("preview-*.png"))

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the job found, once it is done."""
        return self.last_event.get("result", {})

    def stop(self, at_once: bool = False) -> None:
        """Take a job from the queue, or ask its process to write a checkpoint and end.

        By SIGTERM: of a second SIGINT a training thinks that the first was not fast enough, and ends without one.

        Args: at_once: by SIGKILL, whatever it does; it can go on from the checkpoint before.
        """
        with LOCKS, (self.folder / "lock").open("a+") as file:
            file.seek(0)
            if try_lock(file.fileno(), fcntl.LOCK_EX):
                if self.last_event.get("event") == "queued":
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
    lock = os.open(job.folder / "lock", os.O_RDWR | os.O_CREAT)
    with LOCKS:
        if try_lock(lock, fcntl.LOCK_EX):
            os.ftruncate(lock, 0)  # the number of its last process is another's by now
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


def _parse_events(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The events in whole lines of a job's events.jsonl, but those that are torn."""
    for line in lines:
        with contextlib.suppress(ValueError):
            yield json.loads(line)
