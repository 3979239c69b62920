"""What the pages of one studio share: its folder, queue and drawings, how a page is shown, what has changed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import HTTPException, Response

from ..web.pages import Pages
from .access_token import Access
from .drawings import Drawings
from .job_queue import JobQueue
from .jobs import Job, WorkFolder


class Studio:
    """A studio that is open."""

    def __init__(self, work: WorkFolder, port: int, devices: Sequence[str]):
        self.work = work
        self.access = Access(work.token(), port)
        self.drawings = Drawings(work, devices[0])
        self.queue = JobQueue(work, devices, self.drawings)
        self.pages = Pages([Path(__file__).parent])
        self.closing = threading.Event()

    def start(self) -> None:
        """Begin to work through what waits."""
        self.drawings.start()
        self.queue.start()

    def close(self) -> None:
        """End what would not end by itself. Runs go on."""
        self.closing.set()
        self.queue.close()
        self.drawings.close()

    def show(self, template: str, status: int = 200, **context: Any) -> Response:
        """A page, or a piece of one."""
        common = {"form_token": self.access.form_token, "page": ""}
        return self.pages.page(template, status, **{**common, **context})

    def job(self, name: str) -> Job:
        """A job by its id. Raises HTTPException: there is none."""
        job = self.work.job(name)
        if job is None:
            raise HTTPException(404)
        return job

    def snapshot(self) -> dict[str, Any]:
        """{id of a job: how far it is; "drawings": which are there}: what pages show anew when it changes."""
        found: dict[str, Any] = {"queue": self.queue.problem}
        for job in self.work.jobs():
            with contextlib.suppress(FileNotFoundError):  # it went to the bin meanwhile
                found[job.id] = (len(job.events), job.state)
        found["drawings"] = (len(list(self.work.drawings.glob("*.png"))), dict(self.drawings.failed))
        return found | {"paused": self.drawings.paused}
