"""Answers for other programs: a CSV file to publish, tasks with annotations for Label Studio."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from ..comparison.report import csv_text
from ..output_files import atomic
from .answers import Answers, Given, collect
from .plan import PICTURES, Plan
from .rater_pages import answers as words_of
from .sheets import Item
from .store import Study

LABEL_STUDIO = "label-studio"
TARGETS = ("csv", LABEL_STUDIO)


def export(study: Study, target: str, folder: Path) -> list[Path]:
    """Write a study's answers, practice left out, for another program. Returns the files.

    Raises: ValueError: no such target.  OSError: a full disk.
    """
    if target not in TARGETS:
        raise ValueError(f"no export to {target!r}: there are {', '.join(TARGETS)}")
    answers = collect(study)
    if target == "csv":
        people = {x.number: x for x in answers.people}
        rows = [
            {**asdict(x), "excluded": people[x.rater].excluded, "finished": people[x.rater].finished}
            for x in answers.given
        ]
        head = [{f.name: "" for f in fields(Given)}]
        told = {"answers.csv": csv_text(rows or head), "raters.csv": csv_text([asdict(x) for x in answers.people])}
    else:
        told = {
            "tasks.json": json.dumps(tasks(study, answers), ensure_ascii=False, indent=1),
            "config.xml": config(study.plan),
        }
    return [_write(folder / name, text) for name, text in told.items()]


def tasks(study: Study, answers: Answers) -> list[dict[str, Any]]:
    """A task for each item, an annotation for each rater, as Label Studio's JSON import reads them.

    Pictures are named by /data/local-files, Label Studio's address for files of its own machine.
    """
    by: dict[int, dict[int, list[Given]]] = defaultdict(lambda: defaultdict(list))
    for x in answers.given:
        by[x.item][x.rater].append(x)
    words = {q.name: {value: word for value, word, *_ in words_of(q)} for q in study.plan.questions}
    found = []
    for item_id, raters in sorted(by.items()):
        item = study.items[item_id]
        annotations = [
            {"completed_by": rater, "lead_time": max(x.seconds for x in given), "result": _results(given, words)}
            for rater, given in sorted(raters.items())
        ]
        found.append({"data": _data(study, item), "meta": {"role": item.role}, "annotations": annotations})
    return found


def _data(study: Study, item: Item) -> dict[str, Any]:
    shown = {"content": item.content, "style": item.style, "first": item.left, "second": item.right or item.left}
    place = (study.folder / PICTURES).resolve()
    return {
        **{name: f"/data/local-files/?d={place / file}" for name, file in shown.items()},
        "form": item.form,
        "pair": item.pair,
    }


def _results(given: Sequence[Given], words: dict[str, dict[int, str]]) -> list[dict[str, Any]]:
    return [
        {
            "from_name": x.question,
            "to_name": "first_picture",
            "type": "choices",
            "value": {"choices": [words[x.question][x.value]]},
        }
        for x in given
    ]


def config(plan: Plan) -> str:
    """Label Studio's labelling configuration for the same questions."""
    lines = ["<View>"]
    for name in ("content", "style", "first", "second"):
        lines.append(f'  <Header value="{name}"/><Image name="{name}_picture" value="${name}" width="256px"/>')
    for q in plan.questions:
        lines.append(f'  <Header value={quoteattr(q.text)}/><Choices name={quoteattr(q.name)} toName="first_picture">')
        lines += [f"    <Choice value={quoteattr(word)}/>" for _, word, *_ in words_of(q)]
        lines.append("  </Choices>")
    return "\n".join([*lines, "</View>", ""])


def _write(path: Path, text: str) -> Path:
    with atomic(path) as file:
        file.write(text.encode())
    return path
