"""The contact sheet of `qrlora demo`, and what cannot be expected of a built-in base."""

from typing import Any

from .. import plots
from ..built_in_bases import built_in_bases
from ..config import TRIGGERS
from ..world.classified_images import ClassifiedImages
from ..world.classifiers import NONE, Classification
from ..world.demo import TRUTH

LEGEND = "Beneath a picture: the subject and the style that two small classifiers see in it, and how sure they are."
WORDS_LEGEND = "“Quoted”: the nearest words that the base knows, which the adapters give a new meaning."


def contact_sheet(rows: list[ClassifiedImages], footer: str) -> Any:
    """The contact sheet: what is given and what should come out on top, below a line for each adapter."""
    panels = [row_panel(row) for row in rows]
    classified = any(any(panel.notes) for panel in panels)
    renamed = any(all(word not in row.title for word in TRIGGERS.values()) for row in rows[:2])
    legend = "\n".join([LEGEND] * classified + [WORDS_LEGEND] * renamed)
    if legend:
        given = 2 + any(row.title == TRUTH for row in rows)
        panels.insert(given, plots.Panel(legend, []))
    columns = max(4, *(len(row.images) for row in rows))
    return plots.sheet(panels, columns, title="A subject and a style, each from one picture, added", footer=footer)


def limits_of_base(base: str) -> str:
    """A note under the demo's sheet: what cannot be expected of a built-in base with own images; "" of another."""
    if base not in built_in_bases():
        return ""
    return f"{base} knows drawings only and has never seen a photograph; what yours should become, no classifier knows"


def row_panel(row: ClassifiedImages) -> plots.Panel:
    """A row of images as a panel: under each the classifiers' predictions, those that are known to be right or wrong
    with a mark; of anything else they would name the nearest class."""
    notes = [classification_notes(row, prediction) for prediction in row.predictions]
    right = [[correct for _, correct in lines] for lines in notes]
    return plots.Panel(row.title, row.images, ["\n".join(text for text, _ in lines) for lines in notes], right)


def classification_notes(row: ClassifiedImages, prediction: Classification) -> list[tuple[str, bool]]:
    """What the demo's sheet says of an image: (the classifiers' prediction, whether it is right) of content and style,
    where the true one is known."""
    seen = (
        (prediction.content if prediction.content != NONE else "no subject", prediction.content_probability),
        (prediction.style if prediction.style != NONE else "no style", prediction.style_probability),
    )
    judged = zip(seen, row.correct_labels(prediction), strict=True)
    return [(f"{name} {p:.0%} {'✓' if right else '✗'}", right) for (name, p), right in judged if right is not None]
