"""The sheet of `qrlora decompose`: a row of images for each part, with how far what was learnt comes out under each."""

from collections.abc import Iterator, Sequence
from typing import Any

from .. import plots
from ..comparison.decomposition import BASE_ALONE, SUM
from ..comparison.known_word_scale import ROLES
from ..comparison.two_adapters import ALONE, BOTH, WITHOUT, DrawnParts
from . import output_images
from .decompose_inputs import DecomposeInputs

TICKED_FROM = 0.7
"""The score, 0..1, from which on an image's note is green with a tick, below it red with a cross."""
LEGEND = "Beneath an image: how far what was learnt comes out; 0: as any other word, 1: as a word that the base knows."


def sheet(drawn: DrawnParts, inputs: DecomposeInputs) -> Any:
    """The sheet: the two pictures, each adapter as it was trained, the sum; then the style on known things and the
    content in known styles, each without an adapter, alone, and with both present."""
    columns = max(4, *(len(words) for words in inputs.known.values()))
    prompt = inputs.config.prompt
    panels = [*_given_panels(drawn, inputs)]
    panels.append(_panel(drawn, SUM, f"the sum: “{prompt}”", [("", ROLES)] * len(drawn.images[SUM])))
    for role, asked, words in (
        ("style", "the style on known things", inputs.known["content"]),
        ("content", "the content in known styles", inputs.known["style"]),
    ):
        titles = {
            WITHOUT[role]: "the same words without an adapter",
            ALONE[role]: f"the {role} adapter alone",
            BOTH[role]: f"both adapters present, only the {role} asked for",
        }
        named = [(word, (role,)) for word in words]
        panels += [_panel(drawn, part, f"{asked}: {title}", named) for part, title in titles.items()]
    known = [(", ".join(pair), ()) for pair in inputs.known_pairs[:columns]]
    panels.append(_panel(drawn, BASE_ALONE, "known things in known styles, without an adapter", known))
    legend = [LEGEND] if drawn.scores else []
    footer = "\n".join([*legend, output_images.sampling_footer(inputs.config)])
    title = drawn.verdict().partition(":")[0] if drawn.scores else "Each adapter by itself, both, and their sum"
    return plots.sheet(panels, columns, title, footer)


def _given_panels(drawn: DrawnParts, inputs: DecomposeInputs) -> Iterator[plots.Panel]:
    """The pictures that the adapters were trained on, and what each draws of its training prompt."""
    for role, picture in inputs.pictures.items():
        yield plots.Panel(f"the {role}'s picture", [picture])
    for role in ROLES:
        if images := drawn.images.get(role):
            prompt = inputs.pair.present(role)[0].header.prompt
            yield plots.Panel(f"the {role} alone: “{prompt}”", images)


def _panel(drawn: DrawnParts, part: str, title: str, notes: Sequence[tuple[str, Sequence[str]]]) -> plots.Panel:
    """A row of the sheet; what was drawn without an adapter is there to compare with, and neither right nor wrong.

    Args: notes: for each image its word, and the roles whose scores stand under it.
    """
    judged = part not in WITHOUT.values()
    texts, right = [], []
    for k, (word, roles) in enumerate(notes):
        lines: list[tuple[str, bool | None]] = [(word, None)] if word else []
        for role in (role for role in roles if (part, role) in drawn.scores):
            score = drawn.scores[part, role][k]
            name, out = f"{role} " if len(roles) > 1 else "", score >= TICKED_FROM
            lines.append((f"{name}{score:.2f} {'✓' if out else '✗'}", out) if judged else (f"{score:.2f}", None))
        texts.append("\n".join(text for text, _ in lines))
        right.append([out for _, out in lines])
    return plots.Panel(title, drawn.images[part][: len(notes)], texts, right)
