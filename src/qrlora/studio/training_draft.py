"""The draft of a training that the start page edits: images, crops and settings. Kept at every change.

Settings are those of `config.TrainConfig`, with its docstrings beside them.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..built_in_bases import built_in_bases
from ..config import TRIGGERS, TrainConfig
from ..config.setting_descriptions import settings_rows
from ..config.type_checks import parse_override
from .base_pages import known_bases, read_base_json
from .jobs import Job
from .uploaded_images import Square, picture_file, picture_name, square_name, square_of_upload, uploaded_image_facts
from .work_folder import WorkFolder

ROLES = ("content", "style")
MORE = (
    "steps",
    "rank",
    "learning_rate",
    "batch_size",
    "resolution",
    "seed",
    "method",
    "targets",
    "optimizer",
    "dtype",
    "quantize",
    "offload",
    "preview_every",
    "save_every",
)
"""Settings under "More", for both runs."""
DRAFT = "draft.json"
PREVIEWS = 5
"""That a run shows, where nobody says how many."""
STEPS = 500
"""Of a base that says nothing of its own: the paper's."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """A field under "More"."""

    name: str
    default: str
    meaning: str
    options: tuple[str, ...]
    """What one can choose; (): any text."""


def draft_settings() -> list[Setting]:
    """The settings of a draft under "More", described by the docstrings of TrainConfig."""
    hints, rows = typing.get_type_hints(TrainConfig), {row[0]: row for row in settings_rows(TrainConfig)}
    found = []
    for name in MORE:
        hint = hints[name]
        options = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
        options = ("false", "true") if hint is bool else options
        found.append(Setting(name, rows[name][1], rows[name][2], options))
    return found


def read_draft(work: WorkFolder) -> dict[str, Any]:
    """The draft: {"content", "style": [{"picture", "x", "y", "side"}], "shows", "base", "content_trigger", ...}."""
    empty: dict[str, Any] = {"content": [], "style": [], "shows": "", "base": TrainConfig.base, "more": {}}
    return {**empty, **{f"{role}_trigger": word for role, word in TRIGGERS.items()}, **work.read_json(DRAFT)}


def draft_of_form(work: WorkFolder, form: Mapping[str, Any], pictures: Mapping[str, list[str]]) -> dict[str, Any]:
    """The draft in a form of the start page, which is kept.

    Args: pictures: {role: ids of its pictures}.
    """
    names = ("shows", "base", "content_trigger", "style_trigger")
    draft = read_draft(work) | {name: str(form[name]).strip() for name in names if name in form}
    for role in ROLES:
        draft[role] = [_image_with_crop(work, form, role, picture) for picture in pictures[role]]
    draft["more"] = {name: value for name in MORE if (value := str(form.get(f"more_{name}", "")).strip())}
    work.write_json(DRAFT, draft)
    return draft


def _image_with_crop(work: WorkFolder, form: Mapping[str, Any], role: str, picture: str) -> dict[str, Any]:
    """An image of the draft with its square crop: the form's, or the middle one of a new image."""
    about = uploaded_image_facts(work, picture)
    square = dataclasses.asdict(Square.middle(about["width"], about["height"]))
    for name in square:
        value = str(form.get(f"{role}-{picture}-{name}", ""))
        square[name] = int(value) if value.isdecimal() else square[name]
    return {"picture": picture, **square}


def settings_of_draft(work: WorkFolder, draft: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{role: settings} of the trainings that a draft asks for, checked as far as can be before a base is open.

    Raises: ValueError: no picture, a setting that cannot be, a style without what its picture shows.
    """
    if draft["base"] not in known_bases(work):
        raise ValueError(f"There is no base {draft['base']!r} here: choose another, or add it under Bases.")
    found = {}
    for role in ROLES:
        if not draft[role]:
            continue
        trigger = draft[f"{role}_trigger"] or TRIGGERS[role]
        settings: dict[str, Any] = {"role": role, "base": draft["base"], "trigger": trigger}
        settings["preview_every"] = max(1, default_steps(draft["base"], role) // PREVIEWS)
        settings |= {name: parse_override(TrainConfig, name, text) for name, text in draft["more"].items()}
        if role == "style":
            shows = draft["shows"]
            if not shows:
                raise ValueError("Say what the style picture shows, so that only the style is left to train.")
            settings["prompt"] = f"a {shows} in {trigger} style"
        TrainConfig(**settings, image="picture.png").checked()
        found[role] = settings
    if not found:
        raise ValueError("Choose a picture first: of a subject, of a style, or of each.")
    return found


def create_runs(work: WorkFolder, draft: Mapping[str, Any]) -> list[Job]:
    """Turn a draft into training jobs, one for each role with images. Raises ValueError: see `settings_of_draft`."""
    jobs = []
    for role, settings in settings_of_draft(work, draft).items():
        files, squares = {}, []
        for number, placed in enumerate(draft[role]):
            squares.append(Square(placed["x"], placed["y"], placed["side"]))
            files[picture_name(number)] = picture_file(work, placed["picture"])
            files[square_name(number)] = square_of_upload(work, placed["picture"], squares[-1])
        about = [uploaded_image_facts(work, placed["picture"]) for placed in draft[role]]
        middle = [Square.middle(x["width"], x["height"]) for x in about]
        crop = [] if squares == middle else [dataclasses.astuple(square) for square in squares]
        stored = {"train": settings, "crop": crop, "pictures": draft[role]}
        jobs.append(work.create("train", Path(about[0]["name"]).stem or "picture", stored, files))
    return jobs


def draft_of_job(work: WorkFolder, job: Job) -> dict[str, Any]:
    """A new draft with the images and settings of an earlier training; the other role as it was."""
    settings = job.settings["train"]
    role, draft = settings["role"], read_draft(work)
    own = {name: TrainConfig.__dataclass_fields__[name].default for name in MORE}
    more = {name: str(value).lower() for name, value in settings.items() if name in MORE and value != own[name]}
    draft |= {role: job.settings["pictures"], "base": settings["base"], f"{role}_trigger": settings["trigger"]}
    if role == "style":
        draft["shows"] = settings["prompt"].removeprefix("a ").removesuffix(f" in {settings['trigger']} style")
    draft["more"] = more
    work.write_json(DRAFT, draft)
    return draft


def default_steps(base: str, role: str) -> int:
    """The updates that a base's own defaults ask for, as far as its folder tells."""
    train = read_base_json(built_in_bases().get(base) or Path(base)).get("defaults", {}).get("train", {})
    return train.get(role, {}).get("steps") or train.get("steps") or STEPS
