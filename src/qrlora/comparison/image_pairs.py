"""Pairs of a content image and a style image: the synthetic benchmark's, with the true fusion, or one's own."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..image_loading import MIN_SIDE, load_image
from ..text_files import csv_rows
from ..world.captions import CONTENT, CONTENT_TRAINING_PROMPT, STYLE, caption
from ..world.drawings import held_out_contents, known_contents
from ..world.ground_truth import true_image
from ..world.styles import HELD_OUT_STYLES, STYLES

Split = Literal["test", "dev"]
FUSED_PROMPT = caption(CONTENT, STYLE)
"""The prompt of a fused image, with the default trigger words."""
CSV_COLUMNS = ("content", "style", "style_shows")


@dataclass(frozen=True)
class CaptionedImage:
    """A training image with its prompt and, in the benchmark, its true labels."""

    file: bytes
    """The image file's bytes."""
    prompt: str
    content: str = ""
    """Its true content; "": unknown."""
    style: str = ""
    """Its true style; "": unknown."""


@dataclass(frozen=True)
class Pair:
    """A content image and a style image to be fused."""

    name: str
    content: CaptionedImage
    style: CaptionedImage
    truth: CaptionedImage | None = None
    """The true fused image, on which the oracle is trained; None: unknown."""
    prompt: str = FUSED_PROMPT


def split_contents(split: Split) -> list[str]:
    """The held-out contents of a split: a third for "dev", the others for "test"."""
    return [name for k, name in enumerate(held_out_contents()) if (k % 3 == 0) == (split == "dev")]


def contents_of_style_images(split: Split, known: Sequence[str]) -> Sequence[str]:
    """The known contents that a split's style images show: every third of them."""
    return known[0 if split == "dev" else 1 :: 3]


def contents_of_no_style_image(known: Sequence[str]) -> Sequence[str]:
    """The known contents that no style image of either split shows, for prompts."""
    return known[2::3]


def world_pairs(count: int, split: Split = "test", style_word: str = STYLE) -> list[Pair]:
    """Benchmark pairs of a held-out content and a held-out style, which the style image shows on a known content.

    Balanced: every content comes once before one comes twice, and the styles alternate. The split "dev" has a third of
    the contents, for tuning; "test" has the others; no content is in both, neither as content nor in a style image.

    Raises: ValueError: more pairs than there are.
    """
    contents, in_style_images = split_contents(split), contents_of_style_images(split, known_contents())
    styles = tuple(HELD_OUT_STYLES)
    most = len(contents) * len(styles)
    if not 1 <= count <= most:
        raise ValueError(
            f"the split {split!r} has 1..{most} pairs of {len(contents)} contents and {len(styles)} styles"
        )
    used = min(count, len(contents))
    pairs = []
    for k in range(count):
        content = contents[k % used * len(contents) // used]
        style = styles[(k % used + k // used) % len(styles)]
        other = in_style_images[(k * len(in_style_images) // count + len(in_style_images) // 2) % len(in_style_images)]
        pairs.append(
            Pair(
                name=f"{content} in {style}",
                content=_true_captioned_image(content, "plain", CONTENT_TRAINING_PROMPT),
                style=_true_captioned_image(other, style, caption(other, style_word)),
                truth=_true_captioned_image(content, style, caption(CONTENT, style_word)),
                prompt=caption(CONTENT, style_word),
            )
        )
    return pairs


def unrelated_prompts(count: int, world: bool, style_word: str = STYLE) -> list[str]:
    """Prompts without the trained subjects, styles and trigger words: an adapter should not change their images.

    Args: world: known contents and styles of the benchmark, instead of everyday subjects.
    """
    if not world:
        prompts = ("a mountain lake at dawn", "a red bicycle on a wall", "a bowl of fruit", "a city street in rain")
        return [prompts[k % len(prompts)] for k in range(count)]
    contents = contents_of_no_style_image(known_contents())
    styles = [name for name in STYLES if name != style_word]
    return [caption(contents[(29 * k + 7) % len(contents)], styles[(5 * k + 3) % len(styles)]) for k in range(count)]


def pairs_from_csv(table: Path, style_word: str = STYLE) -> list[Pair]:
    """Pairs of one's own images from a CSV file with the columns content, style (image files, beside the table or
    absolute) and style_shows (what the style image shows, in a word). There is no ground truth for them.

    Raises: OSError, ValueError, with the line: a column or cell is missing, a file is no image, a pair is there twice;
            no rows.
    """
    pairs, seen = [], set()
    rows = _read_csv_rows(table)
    for (line, row), name in zip(rows, _pair_names([row for _, row in rows]), strict=True):
        content, style = (table.parent / row[name] for name in CSV_COLUMNS[:2])
        for path in (content, style):
            try:
                load_image(path, MIN_SIDE)  # refused before anything long begins
            except (OSError, ValueError) as error:
                raise ValueError(f"{table}, line {line}: {error}") from error
        if (files := (content.resolve(), style.resolve())) in seen:
            both = f"{row['content']} and {row['style']}"
            raise ValueError(f"{table}, line {line}: the pair of {both} is there already, it would count twice")
        seen.add(files)
        content_image = CaptionedImage(content.read_bytes(), f"a {CONTENT}")
        style_image = CaptionedImage(style.read_bytes(), caption(row["style_shows"], style_word))
        pairs.append(Pair(name, content_image, style_image, prompt=caption(CONTENT, style_word)))
    return pairs


def _pair_names(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The names of a table's pairs: those of the images, with folder and ending where they alone make the difference,
    since a pair's scores are averaged by its name."""
    short = [f"{Path(row['content']).stem} in {Path(row['style']).stem}" for row in rows]
    counts = Counter(short)
    return [
        name if counts[name] == 1 else f"{row['content']} in {row['style']}"
        for name, row in zip(short, rows, strict=True)
    ]


def _read_csv_rows(table: Path) -> list[tuple[int, dict[str, str]]]:
    """(line in the file, row) of a CSV file that has at least CSV_COLUMNS, without empty cells in them.

    Raises: OSError.  ValueError: as `pairs_from_csv`.
    """
    lines = csv_rows(table)
    head = [name.strip() for name in next(lines, (0, []))[1]]
    missing = [name for name in CSV_COLUMNS if name not in head]
    if missing:
        needed = f"it needs {', '.join(CSV_COLUMNS)}, with commas between"
        raise ValueError(f"{table} lacks the column {missing[0]!r}; {needed}")
    rows = []
    for line, cells in lines:
        row = dict(zip(head, map(str.strip, cells), strict=False))
        if not cells:
            continue
        if len(cells) != len(head):
            raise ValueError(f"{table}, line {line}: has {len(cells)} of the {len(head)} columns {', '.join(head)}")
        for name in CSV_COLUMNS:
            if not row[name]:
                raise ValueError(f"{table}, line {line}: {name} is empty")
        rows.append((line, row))
    if not rows:
        raise ValueError(f"{table} has no pairs")
    return rows


def _true_captioned_image(content: str, style: str, prompt: str) -> CaptionedImage:
    buffer = io.BytesIO()
    true_image(content, style).save(buffer, "PNG")
    return CaptionedImage(buffer.getvalue(), prompt, content, style)
