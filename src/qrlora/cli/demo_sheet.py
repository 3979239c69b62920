"""The contact sheet of `qrlora demo`, and what cannot be expected of a built-in base."""

from typing import Any

from .. import plots
from ..built_in_bases import built_in_bases
from ..world.classified_images import ClassifiedImages
from ..world.classifiers import Classification


def contact_sheet(rows: list[ClassifiedImages], footer: str) -> Any:
    """The contact sheet: what is given and what is true on top, below a line for each adapter."""
    single = [row for row in rows if len(row.images) == 1]
    columns = max(3, *(len(row.images) for row in rows))
    panels = [row_panel(row) for row in single if row.title != "the true picture"]
    panels += [row_panel(row) for row in single if row.title == "the true picture"]
    panels += [row_panel(row) for row in rows if row not in single]
    return plots.sheet(panels, columns, title="A subject and a style, each from one picture, added", footer=footer)


def limits_of_base(base: str) -> str:
    """A note under the demo's sheet: what cannot be expected of a built-in base with own images; "" of another."""
    if base not in built_in_bases():
        return ""
    return f"{base} knows drawings only and has never seen a photograph; what yours should become, no classifier knows"


def row_panel(row: ClassifiedImages) -> plots.Panel:
    notes = [classification_note(row, prediction) for prediction in row.predictions]
    return plots.Panel(row.title, row.images, notes, [row.is_correct(prediction) for prediction in row.predictions])


def classification_note(row: ClassifiedImages, prediction: Classification) -> str:
    """What the demo's sheet says of an image: the classifiers' prediction, of what is known; of anything else they
    would name the nearest class."""
    seen = (
        (row.content, prediction.content, prediction.content_probability),
        (row.style, prediction.style, prediction.style_probability),
    )
    return "\n".join(f"{said} {probability:.0%}" for true, said, probability in seen if true)
