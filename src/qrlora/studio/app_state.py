"""What the studio's pages share: the work folder, both queues, how a page is shown, what has changed."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import HTTPException, Response

from ..web.access_token import Access
from ..web.pages import Pages
from .generation_queue import GenerationQueue
from .job_queue import JobQueue
from .jobs import Job
from .work_folder import WorkFolder

ROLE_WORDS = {"content": "subject", "style": "style"}
"""What pages call the roles of adapters."""


class Studio:
    """A studio that is open."""

    def __init__(self, work: WorkFolder, port: int, devices: Sequence[str]):
        self.work = work
        self.access = Access(work.token(), f"studio-{port}", max_age=365 * 24 * 3600)
        self.drawings = GenerationQueue(work, devices[0])
        self.queue = JobQueue(work, devices, self.drawings)
        self.pages = Pages([Path(__file__).parent])
        self.closing = threading.Event()

    def start(self) -> None:
        """Begin to work through what waits."""
        self.drawings.start()
        self.queue.start()

    def close(self) -> None:
        """End the studio's queues. Runs go on."""
        self.closing.set()
        self.queue.close()
        self.drawings.close()

    def show(self, template: str, status: int = 200, **context: Any) -> Response:
        """A page, or a piece of one."""
        common = {"form_token": self.access.form_token, "page": "", "roles": ROLE_WORDS}
        return self.pages.page(template, status, **{**common, **context})

    def job(self, name: str) -> Job:
        """A job of the studio's work folder by its id. Raises HTTPException: there is none."""
        job = self.work.job(name)
        if job is None:
            raise HTTPException(404)
        return job

    def snapshot(self) -> dict[str, Any]:
        """The state of all jobs and images, {job id: how far it is}: pages show anew what has changed in it."""
        found: dict[str, Any] = {"queue": self.queue.problem}
        found |= self.work.each_job(lambda job: (job.id, (len(job.events), job.state)))
        found["drawings"] = (len(list(self.work.drawings.glob("*.png"))), dict(self.drawings.failed))
        return found | {"paused": self.drawings.paused}
