"""VERBS: every verb of the command line, in the order of its help. A new verb is one file and one row."""

from collections.abc import Callable
from typing import Any, NamedTuple

import typer

from . import (
    bases,
    check,
    compare,
    convert,
    decompose,
    demo,
    doctor,
    estimate,
    filters,
    generate,
    grid,
    inspect,
    merge,
    project,
    reproduce,
    studio,
    survey,
    train,
    video,
    words,
)
from .named_values import SettingsCommand, VerbCommand


class Verb(NamedTuple):
    """One row of VERBS."""

    run: Callable[..., Any] | typer.Typer
    """The function whose parameters are arguments and options, or a group of verbs."""
    example: str
    command: type[VerbCommand] = VerbCommand


VERBS = {
    "words": Verb(words.words, words.EXAMPLE),
    "filters": Verb(filters.filters, filters.EXAMPLE),
    "train": Verb(train.train, train.EXAMPLE, SettingsCommand),
    "merge": Verb(merge.merge, merge.EXAMPLE),
    "generate": Verb(generate.generate, generate.EXAMPLE),
    "grid": Verb(grid.grid, grid.EXAMPLE),
    "decompose": Verb(decompose.decompose, decompose.EXAMPLE),
    "video": Verb(video.video, video.EXAMPLE),
    "inspect": Verb(inspect.inspect, inspect.EXAMPLE),
    "convert": Verb(convert.convert, convert.EXAMPLE),
    "check": Verb(check.check, check.EXAMPLE),
    "project": Verb(project.project, project.EXAMPLE),
    "demo": Verb(demo.demo, demo.EXAMPLE),
    "estimate": Verb(estimate.estimate, estimate.EXAMPLE),
    "doctor": Verb(doctor.doctor, doctor.EXAMPLE),
    "bases": Verb(bases.bases, bases.EXAMPLE),
    "compare": Verb(compare.compare, compare.EXAMPLE),
    "reproduce": Verb(reproduce.reproduce, reproduce.EXAMPLE),
    "studio": Verb(studio.studio, studio.EXAMPLE),
    "survey": Verb(survey.app, survey.EXAMPLE),
}

OLD_VERBS = {("bench", "fusion"): "compare", ("rehearse",): "estimate"}
"""What was typed before -> the verb of today; they go with 0.3."""


def add_verbs(app: typer.Typer) -> None:
    """Give an app a command for each row of VERBS."""
    for name, verb in VERBS.items():
        epilog = f"Example: [bold]{verb.example}[/bold]"
        if isinstance(verb.run, typer.Typer):
            app.add_typer(verb.run, name=name, epilog=epilog)
        else:
            app.command(name, cls=verb.command, epilog=epilog)(verb.run)


def renamed(words: list[str]) -> tuple[list[str], str]:
    """A command's words with an old verb replaced, and what to say of that, "" if it is of today."""
    for old, new in OLD_VERBS.items():
        if tuple(words[: len(old)]) == old:
            said = f"qrlora {' '.join(old)} is now qrlora {new}; the old name goes with 0.3"
            return [new, *words[len(old) :]], said
    return words, ""
