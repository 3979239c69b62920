"""The mixer: two adapters, two sliders for their strengths, a grid to click in, image A beside B, and their merge."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import RedirectResponse
from starlette.datastructures import FormData

from ..web.access_token import depends
from ..web.pages import FOREVER
from .app_state import Studio
from .base_pages import known_bases
from .generation_queue import generation_id
from .jobs import Job

FIELDS = {"content": "", "style": "", "prompt": "", "seed": "0", "c": "1", "s": "1", "a": "", "rows": "0, 0.5, 1, 1.5"}
FIELDS |= {"columns": "0, 0.5, 1, 1.5", "grid": "", "locked": "yes"}
"""What the mixer's address and form hold, with what it is at first."""
MOST_CELLS = 49
OPENING = ("dtype", "quantize", "offload", "revision")
"""Settings of a training that say how its base is opened, kept for drawing."""
RULES = ("sum", "stack")
"""Merging rules that give exactly what the mixer shows."""


def add_mixer_pages(app: FastAPI, studio: Studio) -> None:
    """Add the routes of the mixer to a FastAPI application."""
    Mixer(studio).add_routes(app)


class Mixer:
    """Pictures of two adapters at two strengths."""

    def __init__(self, studio: Studio):
        self.studio, self.work, self.drawings = studio, studio.work, studio.drawings

    def add_routes(self, app: FastAPI) -> None:
        """Add the routes of the mixer: its page, images, and the merge."""
        known, form = [depends(self.studio.access.require_token)], depends(self.studio.form)

        @app.get("/mixer", dependencies=known)
        def mixer(request: Request) -> Response:
            return self.studio.show(
                "mixer.html", **self.page_context(self.mixer_fields(request.query_params)), page="mixer"
            )

        @app.get("/mixer/result", dependencies=known)
        def result(request: Request) -> Response:
            return self.studio.show("mixer_result.html", **self.page_context(self.mixer_fields(request.query_params)))

        @app.post("/mixer/draw")
        def draw(sent: FormData = form) -> Response:
            return self.request_images(self.mixer_fields(sent))

        @app.get("/drawing/{name}.png", dependencies=known)
        def drawing(name: str) -> Response:
            """An image that the mixer has asked for."""
            if not name.isalnum():
                raise HTTPException(404)
            path = self.work.served_file("drawings", f"{name}.png")
            return Response(path.read_bytes(), media_type="image/png", headers=FOREVER)

        @app.post("/mixer/merge")
        def merge(sent: FormData = form) -> Response:
            return self.merge_mix(self.mixer_fields(sent), str(sent.get("rule", RULES[0])))

    def mixer_fields(self, sent: Mapping[str, Any]) -> dict[str, str]:
        """The mixer's fields in a query or a form; where it names no adapters, the newest that go together."""
        fields = {name: str(sent.get(name, default)).strip() for name, default in FIELDS.items()}
        if "locked" not in sent and "c" in sent:
            fields["locked"] = ""  # an unticked box is not sent
        if "content" in sent or "style" in sent:
            named = {x.id: x for x in self.work.adapters()}
            found = [named[fields[x]] for x in ("content", "style") if fields[x] in named]
            return fields if "prompt" in sent else fields | {"prompt": prompt_for(found)}
        adapters = self.work.adapters()
        style = next((x for x in adapters if x.facts.get("role") == "style"), None)
        same = [x for x in adapters if style is None or x.facts.get("base") == style.facts.get("base")]
        subjects = [x for x in same if x.facts.get("role") != "style"]
        content = next((x for x in subjects if x.facts.get("role") == "content"), next(iter(subjects), None))
        chosen = {"content": content.id if content else "", "style": style.id if style else ""}
        return fields | chosen | {"prompt": prompt_for([x for x in (content, style) if x])}

    def chosen_adapters(self, fields: Mapping[str, str]) -> list[tuple[Job, float]]:
        """[(adapter, strength)] that are chosen in the mixer."""
        known = {x.id: x for x in self.work.adapters()}
        pairs = [(known.get(fields[name]), parse_strength(fields[x])) for name, x in (("content", "c"), ("style", "s"))]
        return [(job, strength) for job, strength in pairs if job]

    def image_request(self, fields: Mapping[str, str], strengths: Sequence[float] | None = None) -> dict[str, Any]:
        """The image that the mixer's fields describe, at their strengths or others. Raises ValueError: no adapter."""
        chosen = self.chosen_adapters(fields)
        if not chosen:
            raise ValueError("Choose an adapter first.")
        weights = [x for _, x in chosen] if strengths is None else strengths[-len(chosen) :]
        if not fields["seed"].isdecimal():
            raise ValueError(f"the seed must be a whole number, got {fields['seed']!r}")
        base, opening = self.base_and_opening([job for job, _ in chosen])
        return {
            "base": base,
            "opening": opening,
            "adapters": [[job.id, weight] for (job, _), weight in zip(chosen, weights, strict=True)],
            "prompt": fields["prompt"],
            "seed": int(fields["seed"]),
        }

    def base_and_opening(self, adapters: Sequence[Job]) -> tuple[str, dict[str, Any]]:
        """The base of the mixer's adapters, the first that is known here, and how a training here had opened it.

        A file that was brought along may name anything, which must be neither opened nor fetched unasked; kohya's names
        the file of its base, which may be known here by another name.

        Raises: ValueError: they name no base, or none that was ever chosen here.
        """
        known = known_bases(self.work)
        here = [x for x in adapters if x.facts["base"] in known]
        if not here:
            job = next((x for x in adapters if x.facts["base"]), adapters[0])
            base = job.facts["base"]
            said = f"was trained on {base}, which is not among the bases here" if base else "does not say its base"
            raise ValueError(f"{job.title} {said}: add it under Bases, or mix it with one that was trained here.")
        base = here[0].facts["base"]
        train = next((x.settings["train"] for x in here if x.facts["base"] == base and "train" in x.settings), {})
        return base, {name: train[name] for name in OPENING if name in train}

    def grid_requests(self, fields: Mapping[str, str]) -> list[list[tuple[float, float, dict[str, Any]]]]:
        """(content strength, style strength, image) of the mixer's grid, row by row; [] without one.

        Raises: ValueError: no numbers, too many cells.
        """
        if not fields["grid"] or len(self.chosen_adapters(fields)) < 2:
            return []
        rows, columns = parse_strengths(fields["rows"]), parse_strengths(fields["columns"])
        if len(rows) * len(columns) > MOST_CELLS:
            raise ValueError(f"a grid has at most {MOST_CELLS} cells, got {len(rows)} x {len(columns)}")
        return [[(c, s, self.image_request(fields, [c, s])) for s in columns] for c in rows]

    def request_images(self, fields: dict[str, str]) -> Response:
        """Ask for the images that the mixer's fields describe, and show what there is of them."""
        context = self.page_context(fields)
        if not context["problem"] and context["chosen"]:
            self.drawings.request([self.image_request(fields)], first=True)
            self.drawings.request([wanted for row in self.grid_requests(fields) for *_, wanted in row])
            context = self.page_context(fields)
        answer = self.studio.show("mixer_result.html", **context)
        answer.headers["HX-Replace-Url"] = f"/mixer?{urlencode(fields)}"
        return answer

    def page_context(self, fields: dict[str, str]) -> dict[str, Any]:
        """What the mixer's page shows for its fields."""
        chosen, problem, grid, wanted = [], "", [], None
        try:
            chosen = self.chosen_adapters(fields)
            wanted = self.image_request(fields) if chosen else None
            grid = [[self.grid_cell(*x, fields) for x in row] for row in self.grid_requests(fields)]
        except ValueError as error:
            problem = str(error)
        name = generation_id(wanted) if wanted else ""
        state = self.drawings.state(name) if wanted else ""
        if wanted and state == "there":
            self.work.write_json(f"drawings/{name}.json", wanted)
        unknown = state == "unknown" or any(x["state"] == "unknown" for row in grid for x in row)
        context = {"fields": fields, "query": urlencode(fields), "adapters": self.work.adapters(), "chosen": chosen}
        context |= {"drawing": name, "state": state, "grid": grid, "ask": unknown, "problem": problem}
        context |= {"chips": chips([job for job, _ in chosen]), "before": self.image_a(fields["a"]), "rules": RULES}
        return {**context, "paused": self.drawings.paused, "command": self.generate_command(wanted) if wanted else ""}

    def grid_cell(self, c: float, s: float, wanted: dict[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
        """A cell of the mixer's grid of strengths."""
        name = generation_id(wanted)
        here = (c, s) == (parse_strength(fields["c"]), parse_strength(fields["s"]))
        return {"c": c, "s": s, "id": name, "state": self.drawings.state(name), "here": here}

    def image_a(self, name: str) -> dict[str, Any] | None:
        """The mixer's image A, which is kept beside B, with what it was generated with."""
        if not name.isalnum() or not self.drawings.is_generated(name):
            return None
        wanted = self.work.read_json(f"drawings/{name}.json")
        titles = {x.id: x.title for x in self.work.adapters()}
        parts = [f"{titles.get(x, 'deleted')} {strength:g}" for x, strength in wanted.get("adapters", ())]
        return {"id": name, "title": ", ".join([*parts, f"seed {wanted.get('seed', '')}"])}

    def generate_command(self, wanted: Mapping[str, Any]) -> str:
        """The mixer's image as a command line of `qrlora generate`."""
        jobs = self.work.jobs_folder
        files = [f"{jobs / name / 'adapter.safetensors'}={strength:g}" for name, strength in wanted["adapters"]]
        opening = [word for name, x in wanted["opening"].items() if x for word in options(name, x)]
        words = [wanted["prompt"], *files, "--base", wanted["base"], "--seed", str(wanted["seed"]), *opening]
        return shlex.join(["qrlora", "generate", *words])

    def merge_mix(self, fields: dict[str, str], rule: str) -> Response:
        """Save the mix as one adapter. Raises ValueError: fewer than two adapters, no such rule."""
        chosen = self.chosen_adapters(fields)
        if len(chosen) < 2 or rule not in RULES:
            raise ValueError("A merge takes two adapters.")
        strengths = [x for _, x in chosen]
        settings = {"adapters": [job.id for job, _ in chosen], "strengths": strengths, "rule": rule}
        wanted = self.image_request(fields)
        path = self.work.drawings / f"{generation_id(wanted)}.png"
        shown = {"thumbnail.png": path.read_bytes()} if path.is_file() else {}
        title = " + ".join(f"{job.title} {x:g}" for job, x in chosen)
        return RedirectResponse(f"/run/{self.work.create('merge', title, settings, shown).id}", 303)


def prompt_for(adapters: Sequence[Job]) -> str:
    """A prompt with the trigger words of adapters, as the paper's "a <c> in <s> style"."""
    words: dict[str, str] = {}
    for adapter in adapters:
        role, triggers = adapter.facts.get("role", ""), adapter.facts.get("trigger", "").split(", ")
        words |= dict(zip(("content", "style") if role == "merged" else (role,), triggers, strict=False))
    style = f" in {words['style']} style" if words.get("style") else ""
    subject = next((word for role, word in words.items() if role != "style" and word), "cat")
    return f"a {subject}{style}"


def chips(adapters: Sequence[Job]) -> list[str]:
    """Trigger words to click into the prompt, each once."""
    return list(dict.fromkeys(word for x in adapters for word in x.facts.get("trigger", "").split(", ") if word))


def options(name: str, value: Any) -> list[str]:
    """An option of the command line."""
    return [f"--{name}"] if value is True else [f"--{name}", str(value)]


def parse_strength(text: str) -> float:
    """A strength that was typed into the mixer. Raises ValueError: no number, or beyond -10 and 10."""
    try:
        value = float(text)
    except ValueError as error:
        raise ValueError(f"a strength must be a number, got {text!r}") from error
    if not math.isfinite(value) or abs(value) > 10:
        raise ValueError(f"a strength must lie between -10 and 10, got {text}")
    return value


def parse_strengths(text: str) -> list[float]:
    """Strengths with commas between, each once."""
    return list(dict.fromkeys(parse_strength(x.strip()) for x in text.split(",") if x.strip()))
