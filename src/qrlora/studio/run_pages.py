"""The pages of runs: the list of all, and one run's loss curve, previews, log and command line."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, HTTPException, Response
from fastapi.responses import FileResponse, RedirectResponse
from starlette.datastructures import FormData

from ..web.access_token import depends, field_text
from .app_state import Studio
from .job_worker import preview_name, training_settings
from .jobs import ADAPTER, Job
from .loss_curve import loss_curve
from .uploaded_images import square_name

SHOWN = ("train", "merge", "import", "check", "compare")
"""Kinds of jobs in the list of runs."""
LOG = 64 * 1024
"""Bytes of a log's end that are shown."""


def add_run_pages(app: FastAPI, studio: Studio) -> None:
    """Add the routes of the run pages to a FastAPI application."""
    known, form, work = [depends(studio.access.require_token)], depends(studio.form), studio.work

    def runs() -> dict[str, Any]:
        rows = work.each_job(lambda job: run_context(job) if job.kind in SHOWN else None)
        shown = [row for row in rows if row]
        return {"runs": shown, "in_bin": work.in_bin(), "problem": studio.queue.problem, "page": "runs"}

    @app.get("/runs", dependencies=known)
    def queue() -> Response:
        return studio.show("runs.html", **runs())

    @app.get("/runs/list", dependencies=known)
    def queue_list() -> Response:
        return studio.show("run_list.html", **runs())

    @app.get("/run/{name}", dependencies=known)
    def run(name: str) -> Response:
        return studio.show("run.html", **run_page_context(studio, studio.job(name)), page="runs")

    @app.get("/run/{name}/details", dependencies=known)
    def run_details(name: str) -> Response:
        return studio.show("run_details.html", **run_page_context(studio, studio.job(name)))

    @app.get("/run/{name}/{file}", dependencies=known)
    def file(name: str, file: str) -> Response:
        """A file of a run that its page shows."""
        job = studio.job(name)
        if file not in served_files(job):
            raise HTTPException(404)
        path = work.served_file("jobs", job.id, file)
        if file == ADAPTER:
            return FileResponse(path, filename=f"{job.title}.safetensors", media_type="application/octet-stream")
        return FileResponse(path, media_type="image/png")

    @app.post("/run/{name}/stop")
    def stop(name: str, sent: FormData = form) -> Response:
        studio.job(name).stop(at_once=field_text(sent, "at_once") == "yes")
        return redirect_back(sent)

    @app.post("/run/{name}/go-on")
    def go_on(name: str, sent: FormData = form) -> Response:
        studio.job(name).requeue()
        return redirect_back(sent)

    @app.post("/run/{name}/delete")
    def delete(name: str, sent: FormData = form) -> Response:
        work.delete(studio.job(name))
        return RedirectResponse("/runs", 303)

    @app.post("/bin/{name}/restore")
    def restore(name: str, sent: FormData = form) -> Response:
        """Take a run out of the bin."""
        for job in work.in_bin():
            if job.id == name:
                work.restore(job)
        return RedirectResponse("/runs", 303)

    @app.post("/bin/empty")
    def empty(sent: FormData = form) -> Response:
        work.empty_bin()
        return RedirectResponse("/runs", 303)


def redirect_back(sent: FormData) -> Response:
    """To the page that a button was on."""
    job = str(sent.get("from", ""))
    return RedirectResponse(f"/run/{job}" if job.isalnum() else "/runs", 303)


def served_files(job: Job) -> list[str]:
    """Files in a job's folder that pages show."""
    names = [*(preview_name(step) for step in job.previews), ADAPTER, "plot.png", "thumbnail.png"]
    return [*names, *map(square_name, range(len(job.settings.get("pictures", ()))))]


def run_progress(job: Job) -> dict[str, Any]:
    """How far a run is: {"step", "steps", "left"}, or what it does before the first update."""
    step, stage = job.last("step"), job.last("stage")
    left = datetime.timedelta(seconds=round(step["left"])) if step else ""
    queued = max((k for k, x in enumerate(job.events) if x["event"] == "queued"), default=0)
    recent = [x for x in job.events[queued:] if x["event"] == "step"]
    what = stage.get("what", "") if not recent else ""
    return {"step": step.get("step", 0), "steps": step.get("steps", 0), "left": left, "what": what}


def run_context(job: Job) -> dict[str, Any]:
    """What is shown of a run in the list and on its own page."""
    state, has_adapter = job.state, job.adapter.is_file()
    facts = {"job": job, "state": state, "adapter": has_adapter, "moment": moment(job.created)}
    running = state == "running"  # of the others no event but the last has to be read
    return {**facts, "stopping": running and job.stopping, "progress": run_progress(job) if running else {}}


def run_page_context(studio: Studio, job: Job) -> dict[str, Any]:
    """What the page of a run shows."""
    context = run_context(job)
    log = [x for x in job.events if x["event"] not in ("step", "stage", "preview", "end")]
    context |= {"log": [(moment(x["time"]), *log_line(x)) for x in log], "output": end_of_log(job)}
    context |= {"curve": loss_curve(job.losses), "previews": [(step, preview_name(step)) for step in job.previews]}
    partners = [x for x in studio.work.adapters() if x.facts.get("base") == job.facts.get("base") and x.id != job.id]
    thumbnail = (job.folder / "thumbnail.png").is_file()
    return {**context, "command": run_command_line(job), "partners": partners, "thumbnail": thumbnail}


def log_line(event: Mapping[str, Any]) -> tuple[str, str]:
    """An event as (word, text)."""
    return str(event["event"]), str(event.get("text", event.get("device", "")))


def end_of_log(job: Job) -> str:
    """The end of what a run's process printed."""
    path = job.folder / "log.txt"
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG))
        return file.read().decode(errors="replace")


def run_command_line(job: Job) -> str:
    """A run as a command line; "" for what has none."""
    jobs, settings = job.folder.parent, job.settings
    if job.kind == "train":
        words = [f"{name}={x}" for name, value in training_settings(job).items() for x in _setting_words(value)]
        return shlex.join(["qrlora", "train", *words])
    if job.kind not in ("merge", "check", "compare"):
        return ""
    paths = [str(jobs / name / ADAPTER) for name in settings["adapters"]]
    if job.kind == "merge":
        weighted = [f"{path}={x:g}" for path, x in zip(paths, settings["strengths"], strict=True)]
        return shlex.join(["qrlora", "merge", *weighted, "--rule", settings["rule"], "-o", str(job.adapter)])
    return shlex.join(["qrlora", {"check": "check", "compare": "inspect"}[job.kind], *paths])


def _setting_words(value: Any) -> list[str]:
    """A setting's value in a run's command line; of several images and crops each by itself."""
    if isinstance(value, tuple):
        return [",".join(map(str, x)) if isinstance(x, tuple) else x for x in value]
    return [str(value).lower() if isinstance(value, bool) else str(value)]


def moment(seconds: float) -> str:
    """A time of day, with the date if it is another one's."""
    then = datetime.datetime.fromtimestamp(seconds)
    return f"{then:%H:%M}" if then.date() == datetime.date.today() else f"{then:%Y-%m-%d %H:%M}"
