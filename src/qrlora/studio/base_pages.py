"""The page of bases to train on: built in, on this machine, and those of the hub that were added."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import RedirectResponse
from starlette.datastructures import FormData

from ..built_in_bases import built_in_bases
from ..text_files import read_text
from ..web.access_token import depends, field_text
from .app_state import Studio
from .work_folder import WorkFolder

ADDED = "bases.json"
"""Names of bases that were added on the page."""
HUB_NAME = re.compile(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}(@[\w-][\w./-]{0,95})?")
"""OWNER/NAME, with a revision if wanted. No folder of this machine: those come by the command line alone."""


def add_base_pages(app: FastAPI, studio: Studio) -> None:
    """Add the routes of the list of bases to a FastAPI application."""
    known, form, work = [depends(studio.access.require_token)], depends(studio.form), studio.work

    def show_bases(problem: str = "") -> Response:
        rows = [base_row(name, about) for name, about in known_bases(work).items()]
        return studio.show("bases.html", 422 if problem else 200, rows=rows, problem=problem, page="bases")

    @app.get("/bases", dependencies=known)
    def base_list() -> Response:
        return show_bases()

    @app.post("/bases")
    def add_base(sent: FormData = form) -> Response:
        """Add a base of the hub to the list."""
        name = field_text(sent, "name")
        if not HUB_NAME.fullmatch(name) or ".." in name:
            return show_bases(f"{name!r} is no name on the hub: OWNER/NAME. For a folder: qrlora studio --base FOLDER")
        added = work.read_json(ADDED).get("added", [])
        work.write_json(ADDED, {"added": list(dict.fromkeys([*added, name]))})
        return RedirectResponse("/bases", 303)


def base_row(name: str, about: str) -> dict[str, Any]:
    """What the list of bases shows of one."""
    folder = built_in_bases().get(name)
    train = read_base_json(folder).get("defaults", {}).get("train", {}) if folder else {}
    return {"name": name, "about": about, "built_in": folder is not None, "train": train}


def known_bases(work: WorkFolder) -> dict[str, str]:
    """{name: what is known of it} of the bases to choose from: built in, on this machine, and those that were added."""
    found = {name: read_base_json(folder).get("about", "") for name, folder in built_in_bases().items()}
    found |= dict.fromkeys(work.local_bases, "on this machine")
    return found | dict.fromkeys(work.read_json(ADDED).get("added", []), "on the hub")


def read_base_json(folder: Path) -> dict[str, Any]:
    """What a base's folder says of itself; {} if nothing."""
    path = folder / "qrlora.json"
    return json.loads(read_text(path)) if path.is_file() else {}
