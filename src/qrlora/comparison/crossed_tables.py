"""The rows of a crossed comparison as one table for each part: a method's scores, and its differences to another's."""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ..known_words import NEAR
from ..world.captions import STYLE
from .decomposition import (
    BASE_ALONE,
    CONTENT_ALONE,
    FORGETTING_PARTS,
    OF_CONTENT_WORD,
    OF_STYLE_WORD,
    STYLE_ALONE,
    SUM,
)
from .statistics import Estimate, crossed_table, in_hundredths, mean_over_crossed

LABELS = ("method", "part", "content", "style", "image", "seed")
SCORES = ("content", "style", "both", "nearest", "content_likeness", "style_likeness", "ssim")
LEAKS = ("leaked_content", "leaked_style")
WORDS = ("content word", "content loss", "style word", "style loss")
"""The nearest known word, where one was searched, with the base's loss in times its loss with the placeholder."""
PRESERVED = "preserved"
"""Of an image that asks for no adapter: SSIM with the base's own image of the same prompt and seed."""
VALUES = (*(f"{name} right" if name in LABELS else name for name in SCORES), *LEAKS, *WORDS, PRESERVED)
"""The columns of rows.csv after LABELS. A method's label ends in "seed N" where its adapters were trained with another
seed than 0."""
ORACLE_PAIRS = "sum, the k-th content in the k-th style"
"""The part of the oracle, which has an adapter for each of these pairs; the sums of the same pairs are beside it."""
CROSSED_PARTS = (BASE_ALONE, CONTENT_ALONE, STYLE_ALONE, SUM, ORACLE_PAIRS, *FORGETTING_PARTS)
FORGETTING_SCORES = ("content", "style", "both", "nearest", "ssim", PRESERVED, *LEAKS)
"""The scores of FORGETTING_PARTS; what leaks there is the adapter's own content, or its style image's, and style."""
BOTH = " | "
"""In the column "image" of a row with both adapters and a known caption: between their training images."""
Cells = dict[tuple[str, ...], list[dict[str, str]]]
"""{(content, style and first style image): rows}; of images that ask for no adapter {(known caption, training images):
rows}."""


class ScoredMethod(NamedTuple):
    """One line of a table: a method's scores, or the differences of two methods'."""

    part: str
    method: str
    less: str
    """The method whose scores are subtracted; "": none."""
    count: int
    """Cells, each of a content, a style image and a seed of training (of three attributes, a frame)."""
    scores: dict[str, Estimate]
    """{score: its mean, or the mean paired difference}; the interval resamples contents, style images and seeds."""


def scored_line(part: str, method: str, tables: Mapping[str, np.ndarray], less: str = "") -> ScoredMethod:
    """The line of one {score: `crossed_table`}."""
    scores = {score: mean_over_crossed(table) for score, table in tables.items()}
    return ScoredMethod(part, method, less, next(iter(scores.values())).count, scores)


def scored_methods(rows: list[dict[str, str]], against: str = "") -> list[ScoredMethod]:
    """All lines of all tables, in the order of the parts and of the rows.

    Of a method that was trained with several seeds there is a line for each seed, and one for all.

    Args:    against: the method that the others' differences are to, where a part has it; "": a part's first.
    Raises:  ValueError: rows of another part than CROSSED_PARTS.
    """
    found: dict[str, dict[str, dict[int, Cells]]] = {part: {} for part in CROSSED_PARTS}
    if unknown := {row["part"] for row in rows} - {*found}:
        raise ValueError(f"rows of {', '.join(sorted(unknown))!r:.200}, no part of a table here: of another version?")
    for row in rows:
        method, seed = method_and_seed(row["method"])
        cells = found[row["part"]].setdefault(method, defaultdict(lambda: defaultdict(list)))[seed]
        cells[_cell(row)].append(row)
    found[ORACLE_PAIRS] = _beside_the_oracle(found[ORACLE_PAIRS], found[SUM])
    return [x for part, methods in found.items() if methods for x in _lines_of_part(part, methods, against)]


def scores_of_part(part: str) -> tuple[str, ...]:
    """The scores that a part's table has."""
    return FORGETTING_SCORES if part in FORGETTING_PARTS else SCORES


def _cell(row: Mapping[str, str]) -> tuple[str, ...]:
    """What a row is of: an entry for each axis along which an interval resamples."""
    content, style, part = row["content"], row["style"], row["part"]
    image = row["image"].split("+")[0]  # the first of several, so that they are compared with the first alone
    if part not in FORGETTING_PARTS:
        return content, f"{style} {image}"
    if part in (OF_CONTENT_WORD, OF_STYLE_WORD):
        word, known = (content, style) if part == OF_CONTENT_WORD else (style, content)
        return known, f"{image} as {word}"
    return f"{content} in {style}", *image.split(BOTH)


def _beside_the_oracle(
    oracle: dict[str, dict[int, Cells]], sums: dict[str, dict[int, Cells]]
) -> dict[str, dict[int, Cells]]:
    """The oracle's cells and those of the sums of the same pairs, of which each is one: no content and no style image
    is in two, so that pairs are resampled."""
    pairs = {key for by_seed in oracle.values() for cells in by_seed.values() for key in cells}
    found: dict[str, dict[int, Cells]] = {}
    for method, by_seed in (oracle | sums).items():
        for seed, cells in by_seed.items():
            of_pairs = {(" in ".join(key), ""): rows for key, rows in cells.items() if key in pairs}
            if of_pairs:
                found.setdefault(method, {})[seed] = of_pairs
    return found


def _lines_of_part(part: str, methods: Mapping[str, dict[int, Cells]], against: str) -> list[ScoredMethod]:
    """One part's lines: each method for each of its seeds and for all, then the differences."""
    lines, scores = [], scores_of_part(part)
    for method, by_seed in methods.items():
        for seed in sorted(by_seed):
            name = label_of_seed(method, seed)
            lines.append(scored_line(part, name, {score: _table({seed: by_seed[seed]}, score) for score in scores}))
        if len(by_seed) > 1:
            name = f"{method}, {len(by_seed)} seeds"
            lines.append(scored_line(part, name, {score: _table(by_seed, score) for score in scores}))
    first = against if against in methods else next(iter(methods))
    for method, by_seed in methods.items():
        shared = sorted(by_seed.keys() & methods[first].keys())
        for seeds in [shared[:1], shared][: len(shared)]:  # of several seeds the first alone, and all
            mine, theirs = ({k: x[k] for k in seeds} for x in (by_seed, methods[first]))
            if part in FORGETTING_PARTS:  # a caption with an adapter's own word is left out
                for k in seeds:
                    mine[k], theirs[k] = _shared_cells(mine[k], theirs[k]), _shared_cells(theirs[k], mine[k])
            if method == first or any(mine[k].keys() != theirs[k].keys() or not mine[k] for k in seeds):
                continue
            differences = {score: _table(mine, score) - _table(theirs, score) for score in scores}
            lines.append(scored_line(part, method + f", {len(seeds)} seeds" * (len(seeds) > 1), differences, first))
    return lines


def _shared_cells(cells: Cells, others: Cells) -> Cells:
    return {key: rows for key, rows in cells.items() if key in others}


def method_and_seed(label: str) -> tuple[str, int]:
    """A label of rows.csv as the method and the seed that its adapters were trained with."""
    found = re.fullmatch(r"(.*) seed (\d+)", label)
    return (found[1], int(found[2])) if found else (label, 0)


def label_of_seed(method: str, seed: int) -> str:
    """The label that `method_and_seed` takes apart; seed 0 is not said."""
    return method + f" seed {seed}" * (seed > 0)


def _table(by_seed: Mapping[int, Cells], score: str) -> np.ndarray:
    """(contents, style images, seeds): one score, the mean of a cell's images; NaN where there is none."""
    name = f"{score} right" if score in LABELS else score
    cells = {(*key, seed): rows for seed in by_seed for key, rows in by_seed[seed].items()}
    return crossed_table({key: float(np.mean([float(row[name]) for row in rows])) for key, rows in cells.items()})


def by_style(rows: list[dict[str, str]], method: str, under_words: str) -> list[dict[str, str]]:
    """A line for each style: the known word that was searched for it, and a method's sums beside those under the words.

    Args:    method, under_words: labels of rows, with one seed of training and one image of each style.
    Returns: "both" and "ssim" in hundredths; [] if one of the two is not in the rows. No word where the rows have none.
    """
    sums = [row for row in rows if row["part"] == SUM]
    lines = []
    for style in dict.fromkeys(row["style"] for row in sums):
        of_style = {x: [r for r in sums if r["style"] == style and r["method"] == x] for x in (method, under_words)}
        if not all(of_style.values()):
            return []
        line = {"style": style, "word, loss": "; ".join(dict.fromkeys(map(_style_word, of_style[under_words])))}
        for x, found in of_style.items():
            means = (100 * np.mean([float(row[score]) for row in found]) for score in ("both", "ssim"))
            line[x] = ", ".join(f"{mean:.0f}" for mean in means)
        lines.append(line)
    return lines


def _style_word(row: dict[str, str]) -> str:
    """The word of a row's style with its loss, in times the placeholder's."""
    if not row.get("style word"):
        return ""
    loss = float(row["style loss"])
    called = row["style word"] if loss < NEAR else f"`{STYLE}`, {row['style word']} is far"
    return f"{called}, {loss:.1f}"


def markdown_tables(lines: list[ScoredMethod]) -> list[str]:
    """The tables in hundredths, as lines of Markdown."""
    text = []
    for part in CROSSED_PARTS:
        of_part = [x for x in lines if x.part == part]
        if of_part:
            scores = scores_of_part(part)
            text += ["", f"| {part} | {' | '.join(scores)} |", "|---|" + "---|" * len(scores)]
        for x in of_part:
            name = f"`{x.method}` less `{x.less}`" if x.less else f"`{x.method}`, {x.count}"
            text.append(f"| {name} | {' | '.join(map(in_hundredths, x.scores.values()))} |")
    return text
