"""Answers for other programs: a CSV file to publish, tasks with annotations for Label Studio."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from ..comparison.report import csv_text
from ..text_files import write_text
from .counted_answers import Answers, Given, collect_answers
from .plan import PICTURES, Plan
from .rater_pages import answer_buttons as words_of
from .rater_store import Study
from .sheets import Item

LABEL_STUDIO = "label-studio"
TARGETS = ("csv", LABEL_STUDIO)


def export_answers(study: Study, target: str, folder: Path) -> list[Path]:
    """Export a study's answers, practice left out, as CSV or for Label Studio. Returns the files.

    Raises: ValueError: no such target.  OSError: a full disk.
    """
    if target not in TARGETS:
        raise ValueError(f"no export to {target!r}: there are {', '.join(TARGETS)}")
    answers = collect_answers(study)
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
            "tasks.json": json.dumps(label_studio_tasks(study, answers), ensure_ascii=False, indent=1),
            "config.xml": label_studio_config(study.plan),
        }
    for name, text in told.items():
        write_text(folder / name, text)
    return [folder / name for name in told]


def label_studio_tasks(study: Study, answers: Answers) -> list[dict[str, Any]]:
    """Answers exported as Label Studio's tasks: one for each item, with an annotation for each rater.

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
            {
                "completed_by": rater,
                "lead_time": max(x.seconds for x in given),
                "result": _label_studio_results(given, words),
            }
            for rater, given in sorted(raters.items())
        ]
        found.append({"data": _label_studio_data(study, item), "meta": {"role": item.role}, "annotations": annotations})
    return found


def _label_studio_data(study: Study, item: Item) -> dict[str, Any]:
    """The images of an item as the data of a Label Studio task."""
    shown = {"content": item.content, "style": item.style, "first": item.left, "second": item.right or item.left}
    place = (study.folder / PICTURES).resolve()
    files = {name: f"/data/local-files/?d={place / file}" for name, file in shown.items()}
    return {**files, "form": item.form, "pair": item.pair}


def _label_studio_results(given: Sequence[Given], words: dict[str, dict[int, str]]) -> list[dict[str, Any]]:
    """A rater's answers to an item as the results of a Label Studio annotation."""
    told = {"to_name": "first_picture", "type": "choices"}
    return [{**told, "from_name": x.question, "value": {"choices": [words[x.question][x.value]]}} for x in given]


def label_studio_config(plan: Plan) -> str:
    """Label Studio's labelling configuration for the exported questions."""
    lines = ["<View>"]
    for name in ("content", "style", "first", "second"):
        lines.append(f'  <Header value="{name}"/><Image name="{name}_picture" value="${name}" width="256px"/>')
    for q in plan.questions:
        lines.append(f'  <Header value={quoteattr(q.text)}/><Choices name={quoteattr(q.name)} toName="first_picture">')
        lines += [f"    <Choice value={quoteattr(word)}/>" for _, word, *_ in words_of(q)]
        lines.append("  </Choices>")
    return "\n".join([*lines, "</View>", ""])
