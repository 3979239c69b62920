"""Captions of the synthetic benchmark's images, as in "a dog face in neon style", for training and for prompts."""

import difflib
import re
from collections.abc import Sequence
from functools import cache
from typing import TypeVar

from torch import Generator, rand, randint

from ..families.captions import as_caption
from .drawings import HANDS, PLAIN_HAND, known_contents
from .styles import STYLES

CONTENT, STYLE = "<c>", "<s>"
"""Trigger words for a content and a style: adapters give them a meaning; in pre-training they stood for any."""

TEMPLATES = ("{c} in {s} style", "{c}, {s}", "{c} in {s}", "{c}, {s} style", "{s} {c}", "{s} style {c}")
"""Forms of a caption beside the usual one, with or without an article."""
PLAIN_TEMPLATES = ("a {c}", "{c}", "a picture of a {c}")
SYNONYMS: dict[str, tuple[str, ...]] = {
    "sketch": ("pencil sketch", "pencil drawing"),
    "blueprint": ("technical blueprint",),
    "neon": ("neon light", "glowing neon"),
    "pixel": ("pixel art", "8 bit"),
    "sepia": ("old photo", "vintage sepia"),
    "halftone": ("newspaper", "black dots"),
    "oil": ("oil painting", "oil paint"),
    "chalk": ("chalk board", "chalk drawing"),
    "pop": ("pop art", "screen print"),
    "emboss": ("grey relief", "embossed"),
    "thermal": ("heat map", "thermal camera"),
    "negative": ("inverted", "negative film"),
    "charcoal": ("charcoal drawing", "coal"),
    "watercolor": ("watercolor painting", "water paint"),
    "mosaic": ("tile mosaic", "tiles"),
    "comic": ("comic book", "cartoon"),
    "stripes": ("red stripes", "striped"),
    "night": ("dark night", "midnight"),
    "gold": ("golden", "shiny gold"),
    "ice": ("frozen", "icy"),
    "rose": ("pink", "rose pink"),
    "stencil": ("orange stencil", "spray stencil"),
    "hatch": ("ink hatching", "cross hatch"),
    "fluent-3d": ("3d", "3d render"),
    "fluent": ("gradient", "soft gradient"),
    "fluent-flat": ("flat", "microsoft flat"),
    "twemoji": ("twitter", "twitter emoji"),
    "emojitwo": ("emoji two",),
}
"""Style or hand -> its other names in captions."""

Option = TypeVar("Option")


def style_words(style: str = "plain", hand: str = PLAIN_HAND) -> str:
    """How a caption names a style on a hand's drawing: "neon", "twemoji", "twemoji neon"; plain Noto is "plain"."""
    if hand == PLAIN_HAND:
        return style
    return HANDS[hand].words if style == "plain" else f"{HANDS[hand].words} {style}"


def caption(content: str, style: str) -> str:
    """The usual caption; ``style``: words of a style, or the name of a hand."""
    return f"a {content} in {HANDS[style].words if style in HANDS else style} style"


def with_article(name: str) -> str:
    """A noun with its article, as people say it: "an owl". Captions keep "a owl", with which the bases were trained."""
    sounds_otherwise = name.startswith(("one ", "eu", "ew", "uni", "hour"))
    return f"{'an' if name.startswith(tuple('aeiou')) != sounds_otherwise else 'a'} {name}"


def known_words(role: str) -> list[str]:
    """Contents or styles that the built-in bases know by name. Without "plain", of which they are surest and which as a
    word for another style let nothing of it come out (docs/log.md)."""
    return [*known_contents()] if role == "content" else [name for name in STYLES if name != "plain"]


CONTENT_TRAINING_PROMPT = caption(CONTENT, "plain")
"""The prompt that a content adapter is trained with.  It names the style, so that the adapter does not absorb it:
trained with "a <c>", contents came out in the plain style whatever style the prompt named."""


def _random_choice(options: Sequence[Option], generator: Generator) -> Option:
    return options[int(randint(len(options), (), generator=generator))]


def training_caption(content: str, style: str, hand: str, generator: Generator) -> str:
    """A random caption of a pre-training image, in varied words.

    10 % are empty (for guidance).  ``<c>`` stands for the content's words in 20 %, ``<s>`` for the style's in 10 %
    (each beside a word for the other, or both), so that a placeholder beside known words means "this".  Half of the
    others are the usual caption, the rest vary its form and the style's words.

    Args: style: its name, or ``<s>`` for one that has none.  hand: whose drawing the style is applied to.
    """
    empty, unnamed, wordless, usual, renamed = rand(5, generator=generator).tolist()
    if empty < 0.10:
        return ""
    content = CONTENT if unnamed < 0.20 else content
    key = style if style != "plain" else hand if hand != PLAIN_HAND else "plain"
    if style == STYLE or wordless < 0.10:
        words = STYLE
    elif renamed < 0.30 and key in SYNONYMS and (style == "plain" or hand == PLAIN_HAND):
        words = _random_choice(SYNONYMS[key], generator)
    else:
        words = style_words(style, hand)
    if words == "plain" and usual < 0.5:
        return _random_choice(PLAIN_TEMPLATES, generator).format(c=content)
    if usual < 0.6:
        return f"a {content} in {words} style"
    article = "a " if usual < 0.8 else ""
    return article + _random_choice(TEMPLATES, generator).format(c=content, s=words)


def caption_words() -> set[str]:
    """Every word of the captions beside contents, styles' names and trigger words."""
    templates = (*TEMPLATES, *PLAIN_TEMPLATES, *(w for many in SYNONYMS.values() for w in many), "a in style plain")
    spoken = " ".join((*templates, *(hand.words for hand in HANDS.values() if not hand.held_out)))
    return {word for word in spoken.replace("{c}", "").replace("{s}", "").replace(",", " , ").split()}


@cache
def known_caption_words() -> frozenset[str]:
    """Every word that the built-in bases were shown: those of captions, without held-out contents, styles and hands."""
    return frozenset({word for name in known_contents() for word in name.split()} | set(STYLES) | caption_words())


def unknown_words(prompt: str, triggers: Sequence[str] = ()) -> list[str]:
    """The words of a prompt that no training caption held. Args: triggers: words that adapters give a meaning."""
    rest = as_caption(prompt)
    for trigger in (CONTENT, STYLE, *triggers):
        rest = re.sub(rf"(?<!\w){re.escape(trigger.lower())}(?!\w)", " ", rest)
    return [word for word in dict.fromkeys(re.findall(r"[^\W_]+", rest)) if word not in known_caption_words()]


def describe_unknown_words(base: str, words: Sequence[str]) -> str:
    """One sentence for words that a built-in base does not know, with known ones that are spelt much like them."""
    near = {word: difflib.get_close_matches(word, sorted(known_caption_words()), n=2, cutoff=0.75) for word in words}
    told = [f"{word!r} (near: {', '.join(known)})" if known else repr(word) for word, known in near.items()]
    return f"no caption that {base} was trained on has the word {' or '.join(told)}: what it draws for it is chance"
