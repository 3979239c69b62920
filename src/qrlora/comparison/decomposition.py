"""Where a fusion fails: in the content adapter, in the style adapter, or where the two meet.

Each adapter is drawn with by itself, on its own training prompt and with words that the base knows in place of the
other role; then the same with both adapters present, of which only one is asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..world.captions import CONTENT, caption
from ..world.drawings import known_contents
from ..world.styles import STYLES
from .image_pairs import Pair

Adapters = Literal["none", "content", "style", "both"]
PART_MEANINGS = {
    "known content, known style": "the base without adapters: what words alone reach",
    "content": "the content adapter alone, on its training prompt",
    "style": "the style adapter alone, on its training prompt",
    "content, known style": "the content adapter alone, in a style that the base knows",
    "known content, style": "the style adapter alone, on a content that the base knows",
    "content, known style, both present": "both adapters, only the content asked for",
    "known content, style, both present": "both adapters, only the style asked for",
}
"""Part -> its meaning, in the order of the tables; the fusion itself is in the main table."""
EVERYDAY_CONTENTS = ("bicycle", "teapot", "lighthouse", "cat")
EVERYDAY_STYLES = ("watercolor", "pencil sketch", "blueprint", "oil painting")
"""Words that any text-to-image model knows, for pairs without ground truth."""


@dataclass(frozen=True)
class DecomposedPrompt:
    """One image of one part: its prompt, and what it should show."""

    part: str
    """A row of PART_MEANINGS."""
    adapters: Adapters
    """The adapters that are present."""
    prompt: str
    seed: int
    content: str = ""
    """The content that it should show, by its name in the benchmark; "": there is no ground truth."""
    style: str = ""


def decomposed_prompts(
    pair: Pair, adapters: Sequence[str], seeds: Sequence[int], style_word: str
) -> tuple[DecomposedPrompt, ...]:
    """The prompts of all parts of a pair that these adapters allow, one for each seed.

    Known contents are those that no style image of the benchmark shows; known words change from seed to seed.

    Args: adapters: "content", "style": those that the method trains; none of them: the base alone.
    """
    in_benchmark = pair.truth is not None
    contents = known_contents()[2::3] if in_benchmark else EVERYDAY_CONTENTS
    styles = [x for x in STYLES if x != style_word] if in_benchmark else EVERYDAY_STYLES
    found = []
    for k, seed in enumerate(seeds):
        content, style = contents[(17 * k + 3) % len(contents)], styles[(7 * k + 2) % len(styles)]
        own, other = (pair.content.content, pair.style.style), (content, style)
        of_content = (caption(CONTENT, style), own[0], other[1])
        of_style = (caption(content, style_word), other[0], own[1])
        rows: list[tuple[str, Adapters, tuple[str, str, str]]] = []
        if not adapters:
            rows.append(("known content, known style", "none", (caption(content, style), *other)))
        if "content" in adapters:
            rows.append(("content", "content", (pair.content.prompt, own[0], pair.content.style)))
            rows.append(("content, known style", "content", of_content))
        if "style" in adapters:
            rows.append(("style", "style", (pair.style.prompt, pair.style.content, own[1])))
            rows.append(("known content, style", "style", of_style))
        if adapters:
            rows.append(("content, known style, both present", "both", of_content))
            rows.append(("known content, style, both present", "both", of_style))
        for part, present, (prompt, *labels) in rows:
            truth = labels if in_benchmark else ("", "")
            found.append(DecomposedPrompt(part, present, prompt, seed, *truth))
    return tuple(found)
