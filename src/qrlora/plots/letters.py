"""Letters that a figure's font lacks: drawn in an installed font that has them, else told by their number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def complete(figure: Figure) -> None:
    """Each text of a figure in fonts that together have its letters, its own font first.

    A run of letters that no font here has is written as their numbers in Unicode, "[732B 306E]": matplotlib would draw
    the same box for each of them.
    """
    from matplotlib import font_manager
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        own = font_manager.get_font(font_manager.findfont(text.get_fontproperties()))
        lacking = {ord(x) for x in text.get_text() if not x.isspace()} - own.get_charmap().keys()
        if not lacking:
            continue
        names = []
        for name, has in _fonts():
            if lacking & has:
                names.append(name)
                lacking -= has
            if not lacking:
                break
        text.set_fontfamily([*text.get_fontfamily(), *names])
        text.set_text(numbered(text.get_text(), [chr(x) for x in lacking]))


def numbered(text: str, lacking: Sequence[str]) -> str:
    """A text in which runs of the letters that are lacking are their numbers in Unicode, in brackets."""
    parts: list[str | list[str]] = []
    for letter in text:
        if letter not in lacking:
            parts.append(letter)
        elif parts and isinstance(parts[-1], list):
            parts[-1].append(f"{ord(letter):04X}")
        else:
            parts.append([f"{ord(letter):04X}"])
    return "".join(x if isinstance(x, str) else f"[{' '.join(x)}]" for x in parts)


def _fonts() -> Iterator[tuple[str, set[int]]]:
    """(name, numbers of its letters) of each upright font that is installed. Left out are those of pixels alone, as of
    emoji, which matplotlib cannot draw, and Unicode's Last Resort, which has one box for all letters of a script."""
    from matplotlib import font_manager

    for entry in font_manager.fontManager.ttflist:
        if entry.style != "normal" or entry.name.startswith("Last Resort"):
            continue
        try:
            font = font_manager.get_font(entry.fname)
        except RuntimeError:  # no outlines
            continue
        yield entry.name, {*font.get_charmap()}
