"""Whether adapters that are to act together were made to: one content, one style, each called by its own word."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..adapter import Header

ROLES = ("content", "style")


def doubts(headers: Sequence[Header]) -> list[str]:
    """What about some adapters together is hardly meant, a sentence each: two of one role, one trigger for two.

    Merges count as what went into them; nothing is said of adapters without a role, which other tools made.
    """
    sources = [source for header in headers for source in _headers_of_sources(header.entries())]
    found = []
    for role in ROLES:
        count = sum(source.get("role") == role for source in sources)
        if count > 1:
            found.append(f"{count} {role} adapters at once: their {_SHARED[role]} will mix")
    triggers = Counter(x["trigger"] for x in sources if x.get("trigger") and x.get("role") in ROLES)
    for trigger, count in triggers.items():
        if count > 1:
            hint = "a prompt cannot call one without the other; train one of them with trigger=WORD"
            found.append(f"{trigger!r} is the trigger word of {count} adapters: {hint}")
    return found


def swapped_roles(content: Header, style: Header) -> str:
    """A sentence if the adapter in the content's place is a style, or the other way round; else ""."""
    for place, other, header in (("content", "style", content), ("style", "content", style)):
        if header.role == other:
            return f"in the {place}'s place is a {other} adapter: give the content's file first, then the style's"
    return ""


_SHARED = {"content": "subjects", "style": "styles"}


def _headers_of_sources(header: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The header whose role counts, or of a merge those of what went into it."""
    parents = header.get("parents") or ()
    if not parents:
        yield header
    for parent in (x for x in parents if x.get("weight") != 0):
        yield from _headers_of_sources(parent)
