"""The drawings of the synthetic world: 460 contents, each drawn by several hands, and their true pictures.

A hand is a set of emoji by one maker (NOTICE has sources and licences).  One sheet holds one hand's tiles of 128 x 128
pixels, their names in its metadata.  The package ships the sheets that users need: all held-out contents and enough
known ones to learn styles from.  ``python -m qrlora.world.render_sheets`` makes the full
sheets, which pre-training reads.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..basis import cache_folder
from .styles import ALL_STYLES, UNIT

SIZE = 64 * UNIT
"""Side of every picture of the world, in pixels."""
SHEETS = Path(__file__).parent / "sheets"
"""The package's own sheets and ``contents.json``, the names of all contents in their order."""
HELD_OUT_CONTENTS = 60
"""How many contents no built-in base has seen: evenly spaced in the list, so no nearer to each other than the rest."""
COLUMNS = 20


@dataclass(frozen=True)
class Hand:
    """One maker's drawings."""

    words: str
    """How a caption calls this manner of drawing."""
    same_drawing: str = ""
    """Hands of one such group drew the same outlines: a content by one of them is the true picture of it by another.
    Across groups only the idea is shared: there a true picture is true by name."""
    held_out: bool = False
    """No built-in base has seen it."""


HANDS: dict[str, Hand] = {
    "noto": Hand("noto"),
    "fluent-3d": Hand("fluent 3d", "fluent"),
    "fluent": Hand("fluent gradient", "fluent"),
    "fluent-flat": Hand("fluent flat", "fluent"),
    "twemoji": Hand("twemoji"),
    "emojitwo": Hand("emojitwo", "emojitwo"),
    "noto-v1": Hand("blob", held_out=True),
    "fluent-contrast": Hand("fluent contrast", "fluent", held_out=True),
    "emojitwo-mono": Hand("emojitwo stamp", "emojitwo", held_out=True),
}
"""Name of the sheet -> the hand.  The first is drawn where a caption names none."""
PLAIN_HAND = next(iter(HANDS))


def full_sheets() -> Path:
    """Where `render` writes the full sheets."""
    return cache_folder().parent / "sheets"


@cache
def _sheet(path: Path) -> dict[str, Tensor]:
    """Content -> its tile (3, 128, 128), 8 bit."""
    with Image.open(path) as sheet:
        names = json.loads(sheet.getexif()[0x010E])
        pixels = torch.from_numpy(np.array(sheet.convert("RGB")))
    tiles = pixels.unflatten(0, (-1, SIZE)).unflatten(2, (-1, SIZE)).permute(0, 2, 4, 1, 3).flatten(0, 1)
    return dict(zip(names, tiles[: len(names)], strict=True))


def write_sheet(path: Path, tiles: dict[str, Image.Image]) -> None:
    """Lossless WebP; the names, in JSON, are the picture's EXIF description."""
    sheet = Image.new("RGB", (COLUMNS * SIZE, math.ceil(len(tiles) / COLUMNS) * SIZE), "white")
    for k, tile in enumerate(tiles.values()):
        sheet.paste(tile, (k % COLUMNS * SIZE, k // COLUMNS * SIZE))
    exif = Image.Exif()
    exif[0x010E] = json.dumps(list(tiles))
    sheet.save(path, "WEBP", lossless=True, quality=100, method=4, exif=exif)


@cache
def contents() -> tuple[str, ...]:
    """All contents by name, known and held out."""
    return tuple(json.loads((SHEETS / "contents.json").read_text()))


def held_out_contents() -> tuple[str, ...]:
    names = contents()
    return tuple(names[(2 * k + 1) * len(names) // (2 * HELD_OUT_CONTENTS)] for k in range(HELD_OUT_CONTENTS))


def known_contents() -> tuple[str, ...]:
    hidden = set(held_out_contents())
    return tuple(name for name in contents() if name not in hidden)


@cache
def drawn_by(hand: str = PLAIN_HAND) -> tuple[str, ...]:
    """The contents whose drawing by this hand can be read here, in the order of `contents`."""
    return tuple(name for name in contents() if name in _tiles(hand))


@cache
def _tiles(hand: str) -> dict[str, Tensor]:
    if hand not in HANDS:
        raise ValueError(f"no hand {hand!r} in the world; it has {', '.join(HANDS)}")
    full = full_sheets() / f"{hand}.webp"
    return _sheet(full if full.is_file() else SHEETS / f"{hand}.webp")


def drawings(names: Sequence[str], hand: str = PLAIN_HAND) -> Tensor:
    """Contents as a hand drew them: (b, 3, 128, 128) in 0..1.

    Raises: ValueError: a content that is not of the world, that this hand did not draw, or that needs the full sheets.
    """
    tiles = _tiles(hand)
    for name in names:
        if name not in contents():
            raise ValueError(f"no content {name!r} in the world; `qrlora.world.contents()` lists all {len(contents())}")
        if name not in tiles:
            raise ValueError(
                f"no drawing of {name!r} by {hand} here: that hand drew none, or only the full sheets have it, "
                "which `python -m qrlora.world.render_sheets` makes"
            )
    return torch.stack([tiles[name] for name in names]).float() / 255


def true_pictures(names: Sequence[str], style: str = "plain", hand: str = PLAIN_HAND) -> Tensor:
    """The true pictures of contents in a style: (b, 3, 128, 128) in 0..1, rounded to 8 bits as a file would hold them.

    Args: style: a function's name (`styles.ALL_STYLES`), applied to the hand's drawing; or a hand's, in its place.
    """
    if style in HANDS:
        return drawings(names, style)
    if style not in ALL_STYLES:
        raise ValueError(f"no style {style!r} in the world; it has {', '.join((*ALL_STYLES, *HANDS))}")
    return (ALL_STYLES[style](drawings(names, hand)).clamp(0, 1) * 255).round() / 255
