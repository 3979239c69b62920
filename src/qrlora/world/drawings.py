"""The drawings of the synthetic benchmark: 460 contents, each drawn by several hands, read from sheets of tiles.

A *hand* is whose drawing it is: an emoji set by one maker (NOTICE has sources and licences).  One sheet holds one
hand's tiles of 128 x 128 pixels, with their names in its metadata.  Shipped are all contents by the first hand in this
package, among which the nearest truth is looked for; by the others, in `qrlora-bases`, the held-out ones and enough
known ones to train styles on.  ``python -m qrlora.world.render_sheets`` renders the full sheets, which pre-training
reads: it asks whether the shipped excerpt is meant where they are not there.  Names and tiles are checked by their
digests: with others every true image would be wrong.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import output_files
from ..basis import cache_folder
from ..built_in_bases import data_package, in_data_package
from .styles import UNIT

SIZE = 64 * UNIT
"""Side of every image of the benchmark, in pixels."""
SHEET_FOLDER = Path(__file__).parent / "sheets"
"""The first hand's sheet and ``contents.json``, the names of all contents in their order."""
HELD_OUT_COUNT = 60
"""Count of contents that no built-in base was trained on: evenly spaced in the list, so as diverse as the others."""
SHEET_COLUMNS = 20
SHEET_NAMES = 0x010E
"""The EXIF entry of a sheet that holds its tiles' names: the image's description."""


@dataclass(frozen=True)
class Hand:
    """One maker's drawings."""

    words: str
    """Its name in captions."""
    same_drawing: str = ""
    """Name of a group of hands that share outlines: within it, a content by one hand is pixel-wise ground truth for
    another hand.  Across groups only the content's name is shared."""
    held_out: bool = False
    """No built-in base was trained on it."""


HANDS: dict[str, Hand] = {
    "noto": Hand("plain"),
    "fluent-3d": Hand("fluent 3d", "fluent"),
    "fluent": Hand("fluent gradient", "fluent"),
    "fluent-flat": Hand("fluent flat", "fluent"),
    "twemoji": Hand("twemoji"),
    "emojitwo": Hand("emojitwo", "emojitwo"),
    "noto-v1": Hand("blob", held_out=True),
    "fluent-contrast": Hand("fluent contrast", "fluent", held_out=True),
    "emojitwo-mono": Hand("emojitwo stamp", "emojitwo", held_out=True),
}
"""Name of the sheet -> the hand.  The first is the default, whose drawings captions call plain."""
PLAIN_HAND = next(iter(HANDS))
KNOWN_HANDS = tuple(name for name, hand in HANDS.items() if not hand.held_out)
"""The hands that the built-in bases are pre-trained on."""
CONTENTS_DIGEST = "a010dc006cbad3b3"
"""Of the names in ``contents.json``, in their order: by their places they are known or held out."""
SHEET_DIGESTS: dict[str, tuple[str, ...]] = {
    "noto": ("6c51bbd73c492d11",),
    "fluent-3d": ("4a6be2ab416b78fc", "f87af45f818321f3"),
    "fluent": ("8ff5d923ae110553", "a15b2032cff6095b"),
    "fluent-flat": ("b632cee63033c3fe", "2fa7d6c077ef3192"),
    "twemoji": ("137194ac140c384d", "97b588d741729d4b"),
    "emojitwo": ("df54ef1e3e56eecd", "4f0c195db34721a9"),
    "noto-v1": ("cd42a2d076ed25a1", "4d738b390a91673c"),
    "fluent-contrast": ("6e350a5c8d298f9a", "e8bc87176adbb7c2"),
    "emojitwo-mono": ("4157d36f66892781", "4f95a8a7ab5d618a"),
}
"""`sheet_digest` of each hand's shipped sheet, and of its full one, if that is another."""


def full_sheet_folder() -> Path:
    """Where `render_sheets` writes the full sheets."""
    return cache_folder().parent / "sheets"


def sheet_digest(tiles: Mapping[str, Tensor]) -> str:
    """SHA-256 (its first 16 hex digits) of a sheet's names and tiles, in whatever order they are."""
    state = hashlib.sha256()
    for name, tile in sorted(tiles.items()):
        state.update(name.encode() + tile.contiguous().numpy().tobytes())
    return state.hexdigest()[:16]


def _way_out(path: Path) -> str:
    """How to get a sheet that is not as it should be."""
    if path.parent == full_sheet_folder():
        anew = "`python -m qrlora.world.render_sheets` makes the sheets anew"
        return f"{anew}, or move it away and the shipped one is read in its place"
    return f"install the package anew that {path.name} came with"


@cache
def _read_sheet(path: Path) -> dict[str, Tensor]:
    """Read a sheet of drawings: content -> its tile (3, 128, 128), 8 bit.

    Raises: ValueError: it is no whole image; its names, their count or the size of its tiles are not those of the
            world's sheets.
    """
    try:
        with Image.open(path) as sheet:
            text = sheet.getexif().get(SHEET_NAMES, "")
            pixels = torch.from_numpy(np.array(sheet.convert("RGB")))
    except (OSError, SyntaxError) as error:  # Pillow's decoders name no file
        raise ValueError(f"{path} is no whole image ({error}): {_way_out(path)}") from error
    names = _checked_sheet_names(path, text, pixels)
    tiles = pixels.unflatten(0, (-1, SIZE)).unflatten(2, (-1, SIZE)).permute(0, 2, 4, 1, 3).flatten(0, 1)
    return dict(zip(names, tiles[: len(names)], strict=True))


def has_known_drawings(path: Path, hand: str) -> bool:
    """Whether a hand's sheet holds the drawings that the built-in bases were trained on, each under its name."""
    return sheet_digest(_read_sheet(path)) in SHEET_DIGESTS[hand]


def _names_in(text: str) -> list[str] | None:
    """The names of a JSON list; None: the text is none, or holds anything else."""
    try:
        names = json.loads(text)
    except ValueError:
        return None
    return names if isinstance(names, list) and names and all(isinstance(name, str) for name in names) else None


def _checked_sheet_names(path: Path, text: str, pixels: Tensor) -> list[str]:
    """The names of a sheet's tiles, from its metadata."""
    hint, names = _way_out(path), _names_in(text)
    if names is None:
        raise ValueError(f"{path} does not name its tiles, as the world's sheets do: {hint}")
    unknown = [name for name in names if name not in contents()]
    if unknown or len(set(names)) != len(names):
        what = f"{unknown[0]!r}, which the world has not" if unknown else "a content twice"
        raise ValueError(f"{path} has {what}: {hint}")
    rows = math.ceil(len(names) / SHEET_COLUMNS)
    wanted, found = (SHEET_COLUMNS * SIZE, rows * SIZE), (pixels.shape[1], pixels.shape[0])
    if wanted != found:
        raise ValueError(
            f"{path} is {found[0]} x {found[1]} pixels, its {len(names)} tiles of {SIZE} x {SIZE} make "
            f"{wanted[0]} x {wanted[1]}: {hint}"
        )
    return names


def write_sheet(path: Path, tiles: dict[str, Image.Image]) -> None:
    """Write a sheet of drawings, whole or not at all, as lossless WebP; the names, in JSON, are the image's EXIF
    description."""
    sheet = Image.new("RGB", (SHEET_COLUMNS * SIZE, math.ceil(len(tiles) / SHEET_COLUMNS) * SIZE), "white")
    for k, tile in enumerate(tiles.values()):
        sheet.paste(tile, (k % SHEET_COLUMNS * SIZE, k // SHEET_COLUMNS * SIZE))
    exif = Image.Exif()
    exif[SHEET_NAMES] = json.dumps(list(tiles))
    with output_files.atomic(path, overwrite=True) as file:
        sheet.save(file, "WEBP", lossless=True, quality=100, method=4, exif=exif)


@cache
def contents() -> tuple[str, ...]:
    """The names of all contents, known and held out.

    Raises: ValueError: they are not those, or not in the order, that the built-in bases were trained with.
    """
    path = SHEET_FOLDER / "contents.json"
    names = _names_in(path.read_text("utf-8"))
    if names is None or hashlib.sha256("\n".join(names).encode()).hexdigest()[:16] != CONTENTS_DIGEST:
        raise ValueError(
            f"{path} lists other contents than the world's, or in another order, by which other ones would be held "
            f"out: {_way_out(path)}"
        )
    return tuple(names)


def held_out_contents() -> tuple[str, ...]:
    """The contents that no built-in base was trained on."""
    names = contents()
    return tuple(names[(2 * k + 1) * len(names) // (2 * HELD_OUT_COUNT)] for k in range(HELD_OUT_COUNT))


def known_contents() -> tuple[str, ...]:
    """The contents that the built-in bases are pre-trained on."""
    held_out = set(held_out_contents())
    return tuple(name for name in contents() if name not in held_out)


@cache
def contents_drawn_by(hand: str = PLAIN_HAND) -> tuple[str, ...]:
    """The contents whose drawing by this hand is in the sheets at hand, in the order of `contents`."""
    return tuple(name for name in contents() if name in _tiles_by_hand(hand))


@cache
def _tiles_by_hand(hand: str) -> dict[str, Tensor]:
    if hand not in HANDS:
        raise ValueError(f"no hand {hand!r} in the world; it has {', '.join(HANDS)}")
    path = sheet_file(hand)
    if not has_known_drawings(path, hand):
        raise ValueError(
            f"{path} holds other drawings by {hand} than the built-in bases were trained on, or names them otherwise: "
            f"{_way_out(path)}"
        )
    return _read_sheet(path)


def sheet_file(hand: str) -> Path:
    """A hand's sheet: the full one if it was rendered here, else the shipped one.

    Raises: FileNotFoundError: the package that has it is not installed.
    """
    more = data_package()
    folders = [full_sheet_folder(), SHEET_FOLDER, *([more / "sheets"] if more else [])]
    files = [folder / f"{hand}.webp" for folder in folders]
    found = next((path for path in files if path.is_file()), None)
    if found is None:
        raise FileNotFoundError(in_data_package(f"the sheet of drawings by {hand}"))
    return found


def hands_of_excerpt(hands: Iterable[str]) -> list[str]:
    """Those of the hands of whom only the shipped excerpt is read here; the plain hand's shipped sheet is whole."""
    return [hand for hand in hands if hand != PLAIN_HAND and not (full_sheet_folder() / f"{hand}.webp").is_file()]


def check_full_sheets(hands: Iterable[str]) -> None:
    """Check that training on these hands would see all that they drew.

    Raises: FileNotFoundError: of some only the shipped excerpt is here.
    """
    if missing := hands_of_excerpt(hands):
        raise FileNotFoundError(
            f"no full sheets of {', '.join(missing)} are here, only an excerpt of what they drew: "
            "`python -m qrlora.world.render_sheets` makes them, --excerpt trains on the excerpt"
        )


def count_drawings(hands: Iterable[str], names: Iterable[str]) -> dict[str, int]:
    """{hand: how many of these contents are in its sheet}."""
    wanted = set(names)
    return {hand: len(wanted & set(contents_drawn_by(hand))) for hand in hands}


def load_drawings(names: Sequence[str], hand: str = PLAIN_HAND) -> Tensor:
    """The drawings of b contents by one hand: (b, 3, 128, 128) in 0..1.

    Raises: ValueError: an unknown content, one that this hand did not draw, or one that only the full sheets hold.
    """
    tiles = _tiles_by_hand(hand)
    for name in names:
        if name not in contents():
            raise ValueError(f"no content {name!r} in the world; `qrlora.world.contents()` lists all {len(contents())}")
        if name not in tiles:
            raise ValueError(
                f"no drawing of {name!r} by {hand} here: that hand drew none, or only the full sheets have it, "
                "which `python -m qrlora.world.render_sheets` makes"
            )
    return torch.stack([tiles[name] for name in names]).float() / 255
