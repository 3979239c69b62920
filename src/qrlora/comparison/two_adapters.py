"""Two adapter files on words that their base knows, without known answers: the images of each alone, of both, of their
sum, and how far what each learnt comes out in them."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from PIL import Image

from ..adapter import Adapter
from ..families import Base
from ..sampling import generate
from ..sampling_arguments import check_images_fit_memory
from ..trigger_words import contains_word
from ..world.captions import caption, known_words
from .decomposition import (
    BASE_ALONE,
    EVERYDAY_CONTENTS,
    EVERYDAY_STYLES,
    SUM,
    Adapters,
    DecomposedPrompt,
)
from .known_word_scale import ROLES, Judge, KnownWordScale, known_word_pairs, known_word_scales
from .weak_adapter import ALONE, needed_difference, verdict

WORDS = 6
"""Known things, and known styles, unless others are given."""
OWN_IMAGES = 2
"""Images of each adapter alone on its own training prompt."""
WITHOUT = {"content": "content, known style, no adapter", "style": "known content, style, no adapter"}
BOTH = {"content": "content, known style, both present", "style": "known content, style, both present"}
"""Role -> the part that asks for it beside a known word: without an adapter, with its own, with both present."""


@dataclass(frozen=True)
class AdapterPair:
    """A content and a style adapter with the words that call them in prompts."""

    content: Adapter
    style: Adapter
    words: Mapping[str, str]

    def present(self, which: str) -> list[Adapter]:
        """The adapters of a part."""
        return {"none": [], "content": [self.content], "style": [self.style], "both": [self.content, self.style]}[which]


@dataclass(frozen=True)
class DrawnParts:
    """The images of every part, and how far what was learnt comes out in them."""

    images: Mapping[str, Sequence[Image.Image]]
    scores: Mapping[tuple[str, str], Sequence[float]] = field(default_factory=dict)
    """(part, role) -> a score for each image of the part, 0..1; none without judges."""
    spread: Mapping[str, float] = field(default_factory=dict)
    """Role -> `KnownWordScale.spread`."""

    def mean(self, part: str, role: str) -> float:
        """The mean score of a part."""
        return fmean(self.scores[part, role])

    def verdict(self) -> str:
        """Which adapter is weak, in a sentence; see `weak_adapter.verdict`."""
        alone, without = ({role: self.mean(parts[role], role) for role in ROLES} for parts in (ALONE, WITHOUT))
        return verdict(alone, needed_difference(*(2 * x for x in self.spread.values())), without)


def words_to_draw(base: str, built_in: bool, role: str, given: Sequence[str], unlike: Sequence[str]) -> list[str]:
    """The known words of a role to draw with: those given, else WORDS of those that the base knows.

    Args:    built_in: whether the base is one of the package, which knows the words of its pre-training alone.
             unlike: training prompts and trigger words, whose words say nothing of how an adapter does elsewhere.
    Raises:  ValueError: one word alone; a word that a built-in base does not know; fewer than two left beside `unlike`.
    """
    known = known_words(role) if built_in else [*(EVERYDAY_CONTENTS if role == "content" else EVERYDAY_STYLES)]
    name = "thing" if role == "content" else "style"
    if given:
        if len(set(given)) < 2:
            raise ValueError(f"one {name} says too little, {given[0]!r}: give two or more, with commas between")
        if built_in and (unknown := [word for word in given if word not in known]):
            near = difflib.get_close_matches(unknown[0], known, 1) or known[:1]
            raise ValueError(f"{base} does not know the {name} {unknown[0]!r}, but {len(known)} others, as {near[0]!r}")
        return [*dict.fromkeys(given)]
    left = [word for word in known if not any(contains_word(text, word) for text in unlike)]
    if len(left) < 2:
        but = "".join(f" but {word!r}" for word in left)
        drawn = f"every {name}{but} that is drawn unless others are given"
        raise ValueError(f"the training prompts name {drawn}: give two or more others, with commas between")
    return [left[(2 * k + 1) * len(left) // (2 * WORDS)] for k in range(WORDS)] if len(left) > WORDS else left


def prompts_to_draw(pair: AdapterPair, known: Mapping[str, Sequence[str]], seed: int) -> list[DecomposedPrompt]:
    """The prompts of all parts. One seed for all, so that columns compare; the sum and the training prompts have
    several. Args: known: the known things under "content", the known styles under "style"."""
    contents, styles = (known[role] for role in ROLES)
    content, style = (pair.words[role] for role in ROLES)
    found = [DecomposedPrompt(BASE_ALONE, "none", caption(*x), seed) for x in known_word_pairs(contents, styles)]
    asked = {"content": [caption(content, x) for x in styles], "style": [caption(x, style) for x in contents]}
    for role in ROLES:
        own = pair.present(role)[0].header.prompt
        found += [DecomposedPrompt(role, role, own, seed + k) for k in range(OWN_IMAGES) if own]
        rows: tuple[tuple[str, Adapters], ...] = ((WITHOUT[role], "none"), (ALONE[role], role), (BOTH[role], "both"))
        found += [DecomposedPrompt(part, present, prompt, seed) for part, present in rows for prompt in asked[role]]
    count = max(len(contents), len(styles))
    return found + [DecomposedPrompt(SUM, "both", caption(content, style), seed + k) for k in range(count)]


def draw_parts(
    base: Base,
    pair: AdapterPair,
    prompts: Sequence[DecomposedPrompt],
    sampling: Mapping[str, Any],
    on_image: Callable[[int, int], Any] | None = None,
) -> dict[str, list[Image.Image]]:
    """{part: its images}. Args: sampling: settings of `sampling.generate`.  on_image: (done, of how many)."""
    check_images_fit_memory(base, len(prompts), sampling.get("size"))
    images: dict[str, list[Image.Image]] = {}
    done = 0
    for present in dict.fromkeys(x.adapters for x in prompts):
        some = [x for x in prompts if x.adapters == present]
        report = None if on_image is None else lambda now, _, before=done: on_image(before + now, len(prompts))
        texts, seeds = [x.prompt for x in some], [x.seed for x in some]
        drawn = generate(
            base, texts, pair.present(present), seed=seeds, check_triggers=False, on_image=report, **sampling
        )
        for x, image in zip(some, drawn, strict=True):
            images.setdefault(x.part, []).append(image)
        done += len(some)
    return images


def score_parts(
    images: Mapping[str, Sequence[Image.Image]],
    pairs: Sequence[tuple[str, str]],
    pictures: Mapping[str, Image.Image],
    judges: Mapping[str, Judge],
) -> DrawnParts:
    """How far what each adapter learnt comes out in the images that ask for it.

    Args: images: of `draw_parts`.  pairs: those of the part BASE_ALONE.  pictures: what the adapters were trained on.
    """
    scales: dict[str, KnownWordScale] = known_word_scales(judges, pairs, images[BASE_ALONE])
    scores = {
        (part, role): scales[role].scores(images[part], pictures[role])
        for role in ROLES
        for part in (WITHOUT[role], ALONE[role], BOTH[role], SUM)
        if part in images
    }
    return DrawnParts(images, scores, {role: scale.spread for role, scale in scales.items()})
