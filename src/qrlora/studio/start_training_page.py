"""The start page: choose a content and a style image, crop them, and start their trainings."""

from __future__ import annotations

import hashlib
import json
import secrets
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse
from starlette.datastructures import FormData, UploadFile

from ..web.access_token import depends, field_text
from ..web.pages import FOREVER
from .app_state import Studio
from .base_pages import known_bases
from .jobs import Job
from .training_draft import (
    ROLES,
    create_runs,
    draft_of_form,
    draft_of_job,
    draft_settings,
    read_draft,
    settings_of_draft,
)
from .uploaded_images import add_uploaded_image, uploaded_image_facts

LABELS = {
    "content": ("Subject", "One picture of a subject: an object, an animal, a person"),
    "style": ("Style", "One picture in a style"),
}


def add_start_training_page(app: FastAPI, studio: Studio) -> None:
    """Add the routes of the start page to a FastAPI application."""
    StartTrainingPage(studio).add_routes(app)


class StartTrainingPage:
    """What is about to be trained."""

    def __init__(self, studio: Studio):
        self.studio, self.work = studio, studio.work

    def add_routes(self, app: FastAPI) -> None:
        """Add the routes of the page that starts trainings: images, crops, settings."""
        access = self.studio.access
        form = depends(self.studio.form)

        @app.get("/")
        def start(request: Request) -> Response:
            """The start page."""
            if (entered := access.exchange_token(request)) is not None:
                return entered
            access.require_token(request)
            return self.page()

        @app.get("/picture/{name}.webp", dependencies=[depends(access.require_token)])
        def picture(name: str) -> Response:
            uploaded_image_facts(self.work, name)
            path = self.work.served_file("pictures", f"{name}.webp")
            return Response(path.read_bytes(), media_type="image/webp", headers=FOREVER)

        @app.post("/draft")
        def keep(sent: FormData = form) -> Response:
            self.kept(sent)
            return Response(status_code=204)

        @app.post("/pictures")
        def upload(sent: FormData = form) -> Response:
            return self.upload(sent)

        @app.post("/pictures/remove")
        def remove(sent: FormData = form) -> Response:
            """Remove an image from the form of the start page."""
            pictures = self.pictures(sent)
            role, _, picture = field_text(sent, "remove").partition("-")
            pictures = {x: [p for p in found if (x, p) != (role, picture)] for x, found in pictures.items()}
            return self.piece(draft_of_form(self.work, sent, pictures))

        @app.post("/train")
        def train(sent: FormData = form) -> Response:
            """Start the trainings of the form, and show the runs."""
            if field_text(sent, "once") in ("", read_draft(self.work).get("done")):  # a double click
                return RedirectResponse("/runs", 303)
            draft = self.kept(sent)
            try:
                create_runs(self.work, draft)
            except ValueError as error:
                return self.page(draft, str(error))
            self.studio.work.write_json(
                "draft.json", {**draft, "content": [], "style": [], "shows": "", "done": field_text(sent, "once")}
            )
            return RedirectResponse("/runs", 303)

        @app.post("/estimate")
        def estimate(sent: FormData = form) -> Response:
            return self.estimate(self.kept(sent))

        @app.get("/estimate/{name}", dependencies=[depends(access.require_token)])
        def counted(name: str) -> Response:
            return self.studio.show("estimate.html", job=self.studio.job(name))

        @app.post("/again/{name}")
        def again(name: str, sent: FormData = form) -> Response:
            draft_of_job(self.work, self.studio.job(name))
            return RedirectResponse("/", 303)

    def page(self, draft: dict[str, Any] | None = None, problem: str = "") -> Response:
        """The whole page."""
        draft = draft or read_draft(self.work)
        return self.studio.show("pictures.html", 422 if problem else 200, **self.page_context(draft, problem))

    def piece(self, draft: dict[str, Any], problem: str = "") -> Response:
        """The part with the pictures."""
        return self.studio.show("picture_choice.html", 422 if problem else 200, **self.page_context(draft, problem))

    def page_context(self, draft: dict[str, Any], problem: str) -> dict[str, Any]:
        """What the start page shows of a draft: its images, settings and bases."""
        about = {x["picture"]: uploaded_image_facts(self.work, x["picture"]) for role in ROLES for x in draft[role]}
        context = {"draft": draft, "about": about, "problem": problem, "once": secrets.token_hex(8), "page": "pictures"}
        return {**context, "settings": draft_settings(), "bases": known_bases(self.work), "labels": LABELS}

    def pictures(self, sent: FormData) -> dict[str, list[str]]:
        """{role: ids} of the pictures in a form."""
        return {role: list(dict.fromkeys(str(x) for x in sent.getlist(role))) for role in ROLES}

    def kept(self, sent: FormData) -> dict[str, Any]:
        """The draft of a form."""
        return draft_of_form(self.work, sent, self.pictures(sent))

    def upload(self, sent: FormData) -> Response:
        """Add uploaded images to a form of the start page."""
        pictures, problem = self.pictures(sent), ""
        for role in ROLES:
            for file in sent.getlist(f"files_{role}"):
                if not isinstance(file, UploadFile) or not file.filename:
                    continue
                try:
                    pictures[role].append(add_uploaded_image(self.work, file.file, file.filename))
                except ValueError as error:
                    problem = str(error)
        pictures = {role: list(dict.fromkeys(found)) for role, found in pictures.items()}
        return self.piece(draft_of_form(self.work, sent, pictures), problem)

    def estimate(self, draft: dict[str, Any]) -> Response:
        """The memory that the trainings of a draft take: counted once for each base and settings, by a job."""
        shown = {"base": draft["base"], **{k: v for k, v in draft["more"].items() if k in ESTIMATED}}
        try:
            found = settings_of_draft(self.work, {**draft, "shows": draft["shows"] or "cat"})
            settings = next(iter(found.values()), {})
        except ValueError:
            settings = {}
        chosen = {name: settings[name] for name in shown if name in settings and name != "base"}
        return self.studio.show("estimate.html", job=self.estimate_job(shown["base"], chosen))

    def estimate_job(self, base: str, chosen: dict[str, Any]) -> Job:
        """The job that counts the memory of a training, or has counted it before. A new one ends those whose result
        nobody waits for any more: settings change faster than they are counted."""
        key = hashlib.sha256(json.dumps([base, chosen], sort_keys=True).encode()).hexdigest()[:12]
        estimates = [x for x in self.work.jobs() if x.kind == "estimate"]
        for job in estimates:
            if job.settings["key"] == key and job.state in ("done", "waiting", "running"):
                return job
        for job in estimates:
            job.stop(at_once=True)
            if job.state not in ("running", "done"):
                self.work.discard(job)
        settings = {"base": base, "settings": chosen, "key": key, "device": self.studio.queue.devices[0]}
        return self.work.create("estimate", f"what {base} takes", settings)


ESTIMATED = ("rank", "targets", "resolution", "batch_size", "dtype", "quantize", "method", "optimizer")
"""Settings that change the memory that a training takes."""
