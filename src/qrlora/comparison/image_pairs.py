"""What a study is made on: pairs of a content picture and a style picture, and the true fusion where it is known."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..image_loading import MIN_SIDE, load_image
from ..text_files import read_text
from ..world.captions import CONTENT, CONTENT_TRAINING_PROMPT, STYLE, caption
from ..world.drawings import held_out_contents, known_contents
from ..world.ground_truth import true_image
from ..world.styles import HELD_OUT_STYLES, STYLES

Split = Literal["test", "dev"]
FUSED_PROMPT = caption(CONTENT, STYLE)
"""Of a study, unless its style goes by another word."""
COLUMNS = ("content", "style", "style_shows")


@dataclass(frozen=True)
class CaptionedImage:
    """A picture to learn from."""

    picture: bytes
    """The file."""
    prompt: str
    content: str = ""
    """The thing of the world that it shows; "": nobody knows."""
    style: str = ""


@dataclass(frozen=True)
class Pair:
    """One row of a study."""

    name: str
    content: CaptionedImage
    style: CaptionedImage
    truth: CaptionedImage | None = None
    """The fused picture as it should be, of which the oracle learns; None: nobody knows."""
    prompt: str = FUSED_PROMPT


def world_pairs(count: int, split: Split = "test", style_word: str = STYLE) -> list[Pair]:
    """Pairs of held-out things and held-out styles, known things in the style pictures.

    Balanced: every thing comes once before one comes twice, and the styles take turns. The split "dev" has a third of
    the things, to tune on; "test" has the others; no thing is in both, neither as content nor in a style picture.

    Raises: ValueError: more pairs than there are.
    """
    held_out, known = held_out_contents(), known_contents()
    on_dev = split == "dev"
    things = [name for k, name in enumerate(held_out) if (k % 3 == 0) == on_dev]
    shown = known[0 if on_dev else 1 :: 3]
    styles = tuple(HELD_OUT_STYLES)
    most = len(things) * len(styles)
    if not 1 <= count <= most:
        raise ValueError(f"the split {split!r} has 1..{most} pairs of {len(things)} things and {len(styles)} styles")
    used = min(count, len(things))
    pairs = []
    for k in range(count):
        thing = things[k % used * len(things) // used]
        style = styles[(k % used + k // used) % len(styles)]
        other = shown[(k * len(shown) // count + len(shown) // 2) % len(shown)]
        pairs.append(
            Pair(
                name=f"{thing} in {style}",
                content=_of_world(thing, "plain", CONTENT_TRAINING_PROMPT),
                style=_of_world(other, style, caption(other, style_word)),
                truth=_of_world(thing, style, caption(CONTENT, style_word)),
                prompt=caption(CONTENT, style_word),
            )
        )
    return pairs


def unrelated_prompts(count: int, world: bool, style_word: str = STYLE) -> list[str]:
    """Prompts that name neither what was learnt nor what stands for it: what a fusion should leave alone."""
    if not world:
        prompts = ("a mountain lake at dawn", "a red bicycle on a wall", "a bowl of fruit", "a city street in rain")
        return [prompts[k % len(prompts)] for k in range(count)]
    things, styles = known_contents()[2::3], [name for name in STYLES if name != style_word]
    # of these things, no style picture shows any
    return [caption(things[(29 * k + 7) % len(things)], styles[(5 * k + 3) % len(styles)]) for k in range(count)]


def file_pairs(table: Path, style_word: str = STYLE) -> list[Pair]:
    """Pairs of one's own pictures from a CSV file with the columns content, style (picture files, beside the table or
    absolute) and style_shows (what the style picture shows, in a word). Nothing is known of their true fusion.

    Raises: OSError, ValueError, with the line: a column or cell is missing, a picture is none; no rows.
    """
    pairs = []
    for line, row in _rows(table):
        content, style = (table.parent / row[name] for name in COLUMNS[:2])
        for path in (content, style):
            try:
                load_image(path, MIN_SIDE)  # refused before anything long begins
            except (OSError, ValueError) as error:
                raise ValueError(f"{table}, line {line}: {error}") from error
        name = f"{content.stem} in {style.stem}"
        shown = CaptionedImage(style.read_bytes(), caption(row["style_shows"], style_word))
        content_shown = CaptionedImage(content.read_bytes(), f"a {CONTENT}")
        pairs.append(Pair(name, content_shown, shown, prompt=caption(CONTENT, style_word)))
    _unlike([pair.name for pair in pairs], table)
    return pairs


def _rows(table: Path) -> list[tuple[int, dict[str, str]]]:
    """(line in the file, row) of a table with the columns COLUMNS, maybe among others, and no empty cell in them.

    Raises: OSError.  ValueError: as `file_pairs`.
    """
    reader = csv.reader(io.StringIO(read_text(table), newline=""))
    head = [name.strip() for name in next(reader, [])]
    missing = [name for name in COLUMNS if name not in head]
    if missing:
        needed = f"it needs {', '.join(COLUMNS)}, with commas between"
        raise ValueError(f"{table} lacks the column {missing[0]!r}; {needed}")
    rows = []
    for cells in reader:
        line, row = reader.line_num, dict(zip(head, map(str.strip, cells), strict=False))
        if not cells:
            continue
        if len(cells) != len(head):
            raise ValueError(f"{table}, line {line}: has {len(cells)} of the {len(head)} columns {', '.join(head)}")
        for name in COLUMNS:
            if not row[name]:
                raise ValueError(f"{table}, line {line}: {name} is empty")
        rows.append((line, row))
    if not rows:
        raise ValueError(f"{table} has no pairs")
    return rows


def _unlike(names: Sequence[str], table: Path) -> None:
    twice = next((name for name in names if list(names).count(name) > 1), None)
    if twice:
        raise ValueError(f"{table} holds the pair {twice!r} twice: it would count twice")


def _of_world(content: str, style: str, prompt: str) -> CaptionedImage:
    buffer = io.BytesIO()
    true_image(content, style).save(buffer, "PNG")
    return CaptionedImage(buffer.getvalue(), prompt, content, style)
