"""Draw the atlas: ``python -m qrlora.world.render`` (needs the font Noto Color Emoji and the package ``emoji``).

Only for those who change the world; the atlas ships in the package.  Candidates are all single drawings of the font
without flags, skin tones, letters, clock faces and people (which differ in details that 64 pixels do not show).  Of
these the most distinct ones are kept: repeatedly the drawing farthest from all chosen so far.
"""

import argparse
from pathlib import Path

import emoji
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .atlas import ATLAS, SIZE, write_atlas

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
EXCLUDED_WORDS = frozenset(
    "man woman men women person people boy girl hand button square keycap family couple kiss circle symbol sign mark "
    "arrow input latin deaf worker thirty o’clock tone busts bust globe hundred moon".split()
)
NOT_ONE_DRAWING = frozenset("\u200d\u20e3" + "".join(chr(0x1F1E6 + k) for k in range(26)) + "\U000e007f")


def candidates() -> dict[str, str]:
    """Name -> character(s), in the order of the emoji standard."""
    found = {}
    for characters, entry in emoji.EMOJI_DATA.items():
        name = entry["en"].strip(":").replace("_", " ").replace("-", " ").lower()
        if entry["status"] != emoji.STATUS["fully_qualified"] or NOT_ONE_DRAWING & set(characters):
            continue
        if name.isascii() and name.replace(" ", "").isalpha() and not EXCLUDED_WORDS & set(name.split()):
            found[name] = characters
    return found


def draw(characters: str, font: ImageFont.FreeTypeFont) -> Image.Image | None:
    """One drawing, RGB on white, centred in a 64 x 64 square with a margin of 3; None if the font lacks it."""
    canvas = Image.new("RGBA", (136, 128))
    ImageDraw.Draw(canvas).text((0, 0), characters, font=font, embedded_color=True)
    box = canvas.getchannel("A").getbbox()
    if box is None or font.getlength(characters) > 140:
        return None
    drawing = canvas.crop(box)
    scale = (SIZE - 6) / max(drawing.size)
    drawing = drawing.resize([max(1, round(s * scale)) for s in drawing.size], Image.Resampling.LANCZOS)
    tile = Image.new("RGBA", (SIZE, SIZE), "white")
    tile.alpha_composite(drawing, tuple((SIZE - s) // 2 for s in drawing.size))
    return tile.convert("RGB")


def most_distinct(pictures: Tensor, count: int) -> list[int]:
    """Farthest-point choice on 16 x 16 thumbnails of colour and of outline; pictures (n, 3, 64, 64) in 0..1."""
    grey = pictures.mean(1, keepdim=True)
    outline = F.pad((grey[..., 1:, 1:] - grey[..., :-1, :-1]).abs(), (0, 1, 0, 1))
    seen = torch.cat([pictures * 0.5, grey, 3 * outline], 1)
    seen = F.avg_pool2d(F.avg_pool2d(seen, 5, 1, 2), 4).flatten(1)
    chosen = [0]
    distance = torch.full((len(seen),), torch.inf)
    while len(chosen) < count:
        distance = torch.minimum(distance, (seen - seen[chosen[-1]]).square().sum(1))
        chosen.append(int(distance.argmax()))
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--font", default=FONT)
    parser.add_argument("--contents", type=int, default=460)
    parser.add_argument("--output", type=Path, default=ATLAS)
    args = parser.parse_args()
    font = ImageFont.truetype(args.font, 109)
    drawn = {name: tile for name, c in candidates().items() if (tile := draw(c, font))}
    names, tiles = list(drawn), list(drawn.values())
    stack = torch.stack([torch.frombuffer(bytearray(t.tobytes()), dtype=torch.uint8) for t in tiles])
    pictures = stack.reshape(-1, SIZE, SIZE, 3).permute(0, 3, 1, 2).float() / 255
    chosen = most_distinct(pictures, min(args.contents, len(names)))
    write_atlas(args.output, {names[k]: tiles[k] for k in chosen})
    print(f"{len(chosen)} of {len(names)} drawings, {args.output.stat().st_size / 1e6:.1f} MB: {args.output}")


if __name__ == "__main__":
    main()
