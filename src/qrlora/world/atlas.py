"""The contents of the known-answer world: one PNG of 64 x 64 drawings, their names in its text chunk ``contents``.

The drawings are from the font Noto Color Emoji (see NOTICE); ``qrlora.world.render`` made the file.
"""

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from .styles import ALL_STYLES

SIZE = 64
"""Side of every picture of the world, in pixels."""
ATLAS = Path(__file__).parent / "atlas.png"
HELD_OUT_CONTENTS = 60
"""How many contents no built-in base has seen: evenly spaced in the atlas, so no nearer to each other than the rest."""
COLUMNS = 20


def write_atlas(path: Path, tiles: dict[str, Image.Image]) -> None:
    sheet = Image.new("RGB", (COLUMNS * SIZE, math.ceil(len(tiles) / COLUMNS) * SIZE), "white")
    for k, tile in enumerate(tiles.values()):
        sheet.paste(tile, (k % COLUMNS * SIZE, k // COLUMNS * SIZE))
    info = PngImagePlugin.PngInfo()
    info.add_text("contents", json.dumps(list(tiles)))
    sheet.save(path, optimize=True, pnginfo=info)


@cache
def _read_atlas() -> tuple[tuple[str, ...], Tensor]:
    with Image.open(ATLAS) as sheet:
        names = tuple(json.loads(sheet.info["contents"]))
        pixels = torch.from_numpy(np.array(sheet.convert("RGB")))
    tiles = pixels.unflatten(0, (-1, SIZE)).unflatten(2, (-1, SIZE)).permute(0, 2, 4, 1, 3).flatten(0, 1)
    return names, tiles[: len(names)].float() / 255


def contents() -> tuple[str, ...]:
    """All contents by name, known and held out, in the atlas's order."""
    return _read_atlas()[0]


def held_out_contents() -> tuple[str, ...]:
    names = contents()
    return tuple(names[(2 * k + 1) * len(names) // (2 * HELD_OUT_CONTENTS)] for k in range(HELD_OUT_CONTENTS))


def known_contents() -> tuple[str, ...]:
    hidden = set(held_out_contents())
    return tuple(name for name in contents() if name not in hidden)


def _position(name: str) -> int:
    try:
        return contents().index(name)
    except ValueError:
        raise ValueError(
            f"no content {name!r} in the world; `qrlora.world.contents()` lists all {len(contents())}"
        ) from None


def true_pictures(names: list[str] | tuple[str, ...], style: str = "plain") -> Tensor:
    """The true pictures of contents in a style: (b, 3, 64, 64) in 0..1, rounded to 8 bits as a file would hold them."""
    if style not in ALL_STYLES:
        raise ValueError(f"no style {style!r} in the world; it has {', '.join(ALL_STYLES)}")
    drawings = _read_atlas()[1][[_position(n) for n in names]]
    return (ALL_STYLES[style](drawings).clamp(0, 1) * 255).round() / 255
