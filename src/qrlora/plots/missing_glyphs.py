"""Glyphs missing in a figure's font: a fallback font that is installed, or else the Unicode code points as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def add_fallback_fonts(figure: Figure) -> None:
    """Give each text of a figure a list of fonts that together have its glyphs, its own font first.

    A run of letters that no installed font has is replaced by its code points, as "[732B 306E]": matplotlib would draw
    the same box for each of them.
    """
    from matplotlib import font_manager
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        own = font_manager.get_font(font_manager.findfont(text.get_fontproperties()))
        missing = {ord(x) for x in text.get_text() if not x.isspace()} - own.get_charmap().keys()
        if not missing:
            continue
        names = []
        for name, has in _installed_fonts():
            if missing & has:
                names.append(name)
                missing -= has
            if not missing:
                break
        text.set_fontfamily([*text.get_fontfamily(), *names])
        text.set_text(with_code_points(text.get_text(), [chr(x) for x in missing]))


def with_code_points(text: str, missing: Sequence[str]) -> str:
    """A text in which each run of missing letters is replaced by their Unicode code points in brackets."""
    parts: list[str | list[str]] = []
    for letter in text:
        if letter not in missing:
            parts.append(letter)
        elif parts and isinstance(parts[-1], list):
            parts[-1].append(f"{ord(letter):04X}")
        else:
            parts.append([f"{ord(letter):04X}"])
    return "".join(x if isinstance(x, str) else f"[{' '.join(x)}]" for x in parts)


def _installed_fonts() -> Iterator[tuple[str, set[int]]]:
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
