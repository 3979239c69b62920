"""The docstrings' own form, "Args:    a: what it is.  b: another." and so on, as Markdown lists."""

import re
from typing import Any

import griffe

SECTION = re.compile(r"^(Args|Returns|Raises|Yields): *", re.M)
ERROR = r"\w*(?:Error|Interrupt|Extra)"


class DocstringSections(griffe.Extension):
    """Rewrites each docstring before it is rendered."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            names = [x.name for x in getattr(obj, "parameters", ())]
            obj.docstring.value = as_markdown(obj.docstring.value, names)


def as_markdown(text: str, parameters: list[str]) -> str:
    """A docstring as Markdown: `<` is no tag, each section a heading and a list.

    Args: parameters: of the function, which begin the items of "Args".
    """
    head, *sections = SECTION.split(text)
    parts = [escaped(head.strip())]
    names = "|".join(re.escape(x) for x in parameters) or r"\w+"
    starts = {"Args": rf"\*{{0,2}}(?:{names})(?:, (?:{names}))*", "Raises": rf"{ERROR}(?:, {ERROR})*"}
    for kind, body in zip(sections[::2], sections[1::2], strict=True):
        body = body.strip()
        found = list(re.finditer(rf"(?:^|\n\s*|\s{{2,}})({starts[kind]}): ", body)) if kind in starts else []
        if found and found[0].start() == 0:
            ends = [*(x.start() for x in found[1:]), len(body)]
            items = [(x[1], body[x.end() : end]) for x, end in zip(found, ends, strict=True)]
            rows = "\n".join(f"- `{name}`: {escaped(' '.join(value.split()))}" for name, value in items)
        else:
            rows = escaped(" ".join(body.split()))
        parts.append(f"**{kind}**\n\n{rows}")
    return "\n\n".join(parts)


def escaped(text: str) -> str:
    """Text whose `<`, `*` and `_` outside of backticks are themselves, and whose indented lines are no code."""
    pieces = re.split(r"(`[^`]*`)", text)
    pieces[::2] = [re.sub(r"([*_<[])", r"\\\1", piece) for piece in pieces[::2]]
    return re.sub(r"^ {4,}", "   ", "".join(pieces), flags=re.M)
