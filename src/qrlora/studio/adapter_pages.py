"""The pages of adapters: a list of those that were trained, merged or uploaded; uploads; checks; comparisons of two."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import Any, BinaryIO

from fastapi import FastAPI, Response
from fastapi.responses import RedirectResponse
from starlette.datastructures import FormData, UploadFile

from ..web.access_token import depends, field_text
from .app_state import Studio
from .job_worker import preview_name
from .jobs import ADAPTER, Job
from .run_pages import moment
from .uploaded_images import square_name


def add_adapter_pages(app: FastAPI, studio: Studio) -> None:
    """Add the routes of the adapter pages to a FastAPI application."""
    known, form, work = [depends(studio.access.require_token)], depends(studio.form), studio.work

    def page(problem: str = "") -> Response:
        cards = [adapter_card(job) for job in work.adapters()]
        return studio.show("adapters.html", 422 if problem else 200, cards=cards, problem=problem, page="adapters")

    @app.get("/adapters", dependencies=known)
    def adapters() -> Response:
        return page()

    @app.post("/adapters")
    def upload(sent: FormData = form) -> Response:
        """Store an uploaded adapter, and have it read by a job."""
        file = sent.get("file")
        if not isinstance(file, UploadFile) or not file.filename:
            return page("Choose a file first.")
        incoming = work.folder / f".{secrets.token_hex(6)}"
        try:
            check_uploaded_adapter(file.file, file.filename)
            with incoming.open("xb") as out:
                shutil.copyfileobj(file.file, out)
            title = Path(file.filename).stem[:80]
            job = work.create("import", title, {"file": Path(file.filename).name[:80]}, {ADAPTER: incoming})
        except ValueError as error:
            return page(str(error))
        finally:
            incoming.unlink(missing_ok=True)
        return RedirectResponse(f"/run/{job.id}", 303)

    @app.post("/adapters/check")
    def check(sent: FormData = form) -> Response:
        job = studio.job(field_text(sent, "adapter"))
        made = work.create("check", job.title, {"adapters": [job.id]})
        return RedirectResponse(f"/run/{made.id}", 303)

    @app.post("/adapters/compare")
    def compare(sent: FormData = form) -> Response:
        """Start the comparison of two ticked adapters."""
        jobs = [studio.job(str(name)) for name in sent.getlist("adapter")]
        if len(jobs) != 2:
            return page("Tick two adapters to compare.")
        titles = [job.title for job in jobs]
        names = titles if titles[0] != titles[1] else [f"{x} {k}" for k, x in enumerate(titles, 1)]
        settings = {"adapters": [job.id for job in jobs], "names": names}
        return RedirectResponse(f"/run/{work.create('compare', ' and '.join(names), settings).id}", 303)


def adapter_card(job: Job) -> dict[str, Any]:
    """What the list of adapters shows of one: previews, origin, size."""
    if job.previews:
        shown = preview_name(job.previews[-1])
    else:
        shown = next((x for x in ("thumbnail.png", square_name(0)) if (job.folder / x).is_file()), "")
    origins = {"train": "trained here", "merge": "merged here", "import": job.settings.get("file", "")}
    context = {"job": job, "facts": job.facts, "shown": shown, "origin": origins[job.kind]}
    return {**context, "moment": moment(job.created), "megabytes": job.facts["bytes"] / 1e6}


def check_uploaded_adapter(file: BinaryIO, name: str) -> None:
    """Refuse an upload that is no safetensors file before it is stored: pickles run programs. Raises ValueError."""
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(9)
    file.seek(0)
    length = int.from_bytes(head[:8], "little")
    if not name.lower().endswith(".safetensors") or head[8:] != b"{" or length + 8 > size:
        raise ValueError(f"{name} is no safetensors file: others are not read, a pickle can run any program")
