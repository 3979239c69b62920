"""What a picture of the world is called: "a dog face in neon style"."""

from torch import Generator, rand, randint

CONTENT, STYLE = "<c>", "<s>"
"""Placeholders: some thing, some style.  Adapters give them a meaning; the base has seen them mean anything."""


def caption(content: str, style: str) -> str:
    return f"a {content} in {style} style"


LEARN_CONTENT = caption(CONTENT, "plain")
"""What a content picture is called while it is learnt: with its style named, the style stays free. Learnt as "a <c>",
the thing was painted plain whatever the style asked for."""


def training_caption(content: str, style: str, generator: Generator) -> str:
    """A caption as pre-training shows it: 10 % empty (for guidance), 20 % with ``<c>`` for the thing's words.

    ``style``: its word, or ``<s>`` for one without.  A style with a word is called ``<s>`` in 5 %; a plain picture is
    called plain half of the time and otherwise by its content alone.
    """
    empty, unnamed, wordless = rand(3, generator=generator).tolist()
    if empty < 0.10:
        return ""
    content = CONTENT if unnamed < 0.20 else content
    if wordless < 0.05:
        style = STYLE
    if style == "plain" and int(randint(2, (), generator=generator)):
        return f"a {content}"
    return caption(content, style)
