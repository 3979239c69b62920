"""`qrlora studio`: the server of one folder."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterable, Callable, Sequence
from pathlib import Path
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from ..web.pages import application
from ..web.security import Guard, RateLimit, hosts_of
from ..web.serving import NAMES, Listener, listen, serve
from .access_token import depends
from .adapter_pages import add_adapter_pages
from .app_state import Studio
from .base_pages import add_base_pages
from .jobs import WorkFolder
from .mixer_pages import add_mixer_pages
from .run_pages import add_run_pages
from .start_training_page import add_start_training_page

UPLOADS = {"/pictures": 256 * 1024**2, "/adapters": 2 * 1024**3}
"""Bytes of a request that brings files; each picture has a limit of its own."""
LARGEST_FORM = 1024**2
LOOK = 0.3
"""Seconds between two looks at what has changed."""


def studio_app(studio: Studio, listener: Listener) -> Guard:
    """The FastAPI application of a studio: all its pages behind their guard."""
    app, access = application(), studio.access
    studio.pages.serve_static(app)
    for add_pages in (add_start_training_page, add_run_pages, add_mixer_pages, add_adapter_pages, add_base_pages):
        add_pages(app, studio)

    def closed(status: int, word: str = "") -> bytes:
        texts = {"size": "That is larger than this page takes.", "rate": "Too many requests at once."}
        text = texts.get(word, "Open the address that qrlora studio has printed, with its token.")
        return studio.pages.text("message.html", heading="Not here", text=text, page="").encode()

    @app.get("/events", response_class=EventSourceResponse, dependencies=[depends(access.require_token)])
    async def events() -> AsyncIterable[ServerSentEvent]:
        before: dict[str, Any] | None = None
        while not studio.closing.is_set():
            now = await asyncio.to_thread(studio.snapshot)
            if before is not None and (changed := [x for x in {**before, **now} if before.get(x) != now.get(x)]):
                yield ServerSentEvent(raw_data=" ".join(changed), event="changed")
            before = now
            await asyncio.sleep(LOOK)

    @app.exception_handler(HTTPException)
    @app.exception_handler(404)
    @app.exception_handler(405)
    async def refused(request: Request, error: Any) -> Response:
        if error.status_code == 403:
            return Response(closed(403), 403, media_type="text/html")
        return studio.show("message.html", 404, heading="Not here", text="There is no such page, or no longer.")

    @app.exception_handler(FileNotFoundError)
    async def missing(request: Request, error: Any) -> Response:
        return studio.show("message.html", 404, heading="Not here", text="There is no such file, or no longer.")

    @app.exception_handler(ValueError)
    async def impossible(request: Request, error: Any) -> Response:
        return studio.show("message.html", 422, heading="That cannot be", text=str(error))

    hosts = hosts_of(NAMES, listener.port)
    return Guard(app, hosts, {"": RateLimit(200, 1000)}, closed, LARGEST_FORM, UPLOADS)


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
    try:
        studio = Studio(work, listener.port, devices)
        app = studio_app(studio, listener)
        studio.start()
        serve(
            [(app, listener)],
            lambda: on_ready(f"{listener.address}/?token={work.token()}"),
            studio.close,
        )
        return sum(job.state == "running" for job in work.jobs())
    finally:
        os.close(lock)
