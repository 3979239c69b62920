"""Where a fusion fails: in the content adapter, in the style adapter, or where the two meet.

Each adapter is drawn with by itself, on its own training prompt and with words that the base knows in place of the
other role; then the same with both adapters present, of which only one is asked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image

from ..adapter import Adapter
from ..evaluation import ground_truth_scores
from ..world.captions import CONTENT, caption
from ..world.drawings import known_contents
from ..world.ground_truth import true_images
from ..world.image_tensors import tensor_from_pil
from ..world.styles import STYLES
from .image_pairs import Pair, contents_of_no_style_image

Adapters = Literal["none", "content", "style", "both"]
Draw = Callable[[Sequence[str], Sequence[int]], list[Image.Image]]
"""(prompts, seeds) -> an image for each."""
BASE_ALONE, CONTENT_ALONE, STYLE_ALONE, SUM = (
    "known content, known style",
    "content, known style",
    "known content, style",
    "sum",
)
WITH_CONTENT, WITH_STYLE, WITH_BOTH, OF_CONTENT_WORD, OF_STYLE_WORD = FORGETTING_PARTS = (
    "known content, known style, content adapter present",
    "known content, known style, style adapter present",
    "known content, known style, both present",
    "the content adapter's word as the base knew it, known style",
    "known content, the style adapter's word as the base knew it",
)
"""Of `crossed_forgetting`: images that ask for no adapter."""
PART_MEANINGS = {
    BASE_ALONE: "the base without adapters: what words alone reach",
    "content": "the content adapter alone, on its training prompt",
    "style": "the style adapter alone, on its training prompt",
    CONTENT_ALONE: "the content adapter alone, in a style that the base knows",
    STYLE_ALONE: "the style adapter alone, on a content that the base knows",
    "content, known style, both present": "both adapters, only the content asked for",
    "known content, style, both present": "both adapters, only the style asked for",
}
"""Part -> its meaning, in the order of the tables; the fusion itself (SUM) is in the main table."""
EVERYDAY_CONTENTS = ("bicycle", "teapot", "lighthouse", "cat", "tree", "chair")
EVERYDAY_STYLES = ("watercolor", "pencil sketch", "blueprint", "oil painting", "mosaic", "pixel art")
"""Words that any text-to-image model knows, for pairs without ground truth."""


@dataclass(frozen=True)
class DecomposedPrompt:
    """One image of one part: its prompt, and what it should show."""

    part: str
    """A row of PART_MEANINGS, or SUM."""
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
    contents = contents_of_no_style_image(known_contents()) if in_benchmark else EVERYDAY_CONTENTS
    styles = [x for x in STYLES if x != style_word] if in_benchmark else EVERYDAY_STYLES
    found = []
    for k, seed in enumerate(seeds):
        content, style = contents[(17 * k + 3) % len(contents)], styles[(7 * k + 2) % len(styles)]
        own, other = (pair.content.content, pair.style.style), (content, style)
        of_content = (caption(CONTENT, style), own[0], other[1])
        of_style = (caption(content, style_word), other[0], own[1])
        rows: list[tuple[str, Adapters, tuple[str, str, str]]] = []
        if not adapters:
            rows.append((BASE_ALONE, "none", (caption(content, style), *other)))
        if "content" in adapters:
            rows.append(("content", "content", (pair.content.prompt, own[0], pair.content.style)))
            rows.append((CONTENT_ALONE, "content", of_content))
        if "style" in adapters:
            rows.append(("style", "style", (pair.style.prompt, pair.style.content, own[1])))
            rows.append((STYLE_ALONE, "style", of_style))
        if adapters:
            rows.append(("content, known style, both present", "both", of_content))
            rows.append(("known content, style, both present", "both", of_style))
        for part, present, (prompt, *labels) in rows:
            truth = labels if in_benchmark else ("", "")
            found.append(DecomposedPrompt(part, present, prompt, seed, *truth))
    return tuple(found)


def draw_and_score(
    prompts: Sequence[DecomposedPrompt], draw: Draw, leaks: tuple[str, str]
) -> list[tuple[Image.Image, dict[str, float]]]:
    """Draw decomposed prompts, all with the same adapters present, and score each image against its own true image.

    Args:    leaks: the content of the style image and the style of the content image, neither of which should show.
    Returns: for each prompt its image, and its row of `ground_truth_scores`; {} where there is no ground truth.
    """
    found = []
    for x, image in zip(prompts, draw([x.prompt for x in prompts], [x.seed for x in prompts]), strict=True):
        row: dict[str, float] = {}
        if x.content:
            truth = true_images([x.content], x.style)[0]
            (row,) = ground_truth_scores(tensor_from_pil([image]), truth, x.content, x.style, *leaks)
        found.append((image, row))
    return found


def without_trigger(adapter: Adapter) -> Adapter:
    """The adapter for prompts that lack its trigger word on purpose, which `generate` would refuse."""
    return replace(adapter, header=replace(adapter.header, trigger=""))
