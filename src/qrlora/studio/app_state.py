"""What the studio's pages share: the work folder, both queues, how a page is shown, what has changed."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from fastapi import HTTPException, Request, Response
from starlette.datastructures import FormData

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

    async def form(self, request: Request) -> AsyncIterator[FormData]:
        """The form of a request, as `Access.read_form`; what it changes is looked at at once."""
        yield await self.access.read_form(request)
        self.queue.wake()

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
