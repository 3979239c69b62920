"""`qrlora studio`: the server of one folder."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterable, Callable, Sequence
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from ..web.access_token import depends
from ..web.pages import application
from ..web.security import Guard, RateLimit, hosts_of
from ..web.serving import NAMES, Listener, listen, serve
from .adapter_pages import add_adapter_pages
from .app_state import Studio
from .base_pages import add_base_pages
from .job_worker import user_message
from .mixer_pages import add_mixer_pages
from .run_pages import add_run_pages
from .start_training_page import add_start_training_page
from .work_folder import WorkFolder

UPLOADS = {"/pictures": 256 * 1024**2, "/adapters": 2 * 1024**3}
"""Bytes of a request that brings files; each picture has a limit of its own."""
LARGEST_FORM = 1024**2
RATE = 200, 1000
"""Requests a second, and at once: a grid's pictures are fetched together."""
LOOK = 0.2
"""Seconds between two looks at what has changed."""


REFUSALS = {
    "host": "Open the address that qrlora studio has printed, with its token.",
    "token": "Open the address that qrlora studio has printed, with its token.",
    "origin": "This form is not from a page of this studio: reload the page, and send it again.",
    "size": "That is larger than this page takes.",
    "rate": "Too many requests at once: wait a moment, and reload the page.",
}
"""What a page says that is not to be had; of any other reason that there is no such page."""


def studio_app(studio: Studio, listener: Listener) -> Guard:
    """The FastAPI application of a studio: all its pages behind their guard."""

    def refuse(status: int, reason: str) -> bytes:
        text = REFUSALS.get(reason, "There is no such page, or no longer.")
        return studio.pages.text("message.html", heading="Not here", text=text, page="").encode()

    app = application(studio.pages, refuse)
    for add_pages in (add_start_training_page, add_run_pages, add_mixer_pages, add_adapter_pages, add_base_pages):
        add_pages(app, studio)

    @app.get("/events", response_class=EventSourceResponse, dependencies=[depends(studio.access.require_token)])
    async def events() -> AsyncIterable[ServerSentEvent]:
        """Tell open pages, as server-sent events, what has changed."""
        before = studio.queue.seen
        while not studio.closing.is_set():
            if (now := studio.queue.seen) is not before:
                if changed := [x for x in {**before, **now} if before.get(x) != now.get(x)]:
                    yield ServerSentEvent(raw_data=" ".join(changed), event="changed")
                before = now
            await asyncio.sleep(LOOK)

    @app.exception_handler(ValueError)
    async def impossible(request: Request, error: ValueError) -> Response:
        return studio.show("message.html", 422, heading="That cannot be", text=str(error))

    @app.exception_handler(OSError)
    async def unwritable(request: Request, error: OSError) -> Response:
        return studio.show("message.html", 507, heading="That could not be stored", text=user_message(error))

    return Guard(app, hosts_of(NAMES, listener.port), {"": RateLimit(*RATE)}, refuse, LARGEST_FORM, UPLOADS)


def serve_studio(
    folder: Path,
    *,
    port: int = 8810,
    devices: Sequence[str] = ("auto",),
    bases: Sequence[str] = (),
    on_ready: Callable[[str], Any] = lambda address: None,
) -> int:
    """Serve a studio until Ctrl-C. Runs that are not done go on without it.

    Args:    devices: one run at a time on each; pictures are drawn on the first.
             bases: names, folders and files to offer beside the built-in ones.
             on_ready: (address to open, with its token).
    Returns: how many runs go on.
    Raises:  OSError: the port is taken.  ValueError: another server has the folder open.
    """
    listener = listen(port)
    work = WorkFolder(folder, bases)
    lock = work.acquire_lock()
    tempfile.tempdir = str(work.folder)  # where large uploads wait: on the disk that they are for, and nowhere else
    studio = Studio(work, listener.port, devices)
    try:
        studio.start()
        address = f"{listener.address}/?token={work.token()}"
        serve([(studio_app(studio, listener), listener)], lambda: on_ready(address), studio.close)
        return sum(work.each_job(lambda job: job.state == "running"))
    finally:
        studio.close()
        tempfile.tempdir = None
        os.close(lock)
