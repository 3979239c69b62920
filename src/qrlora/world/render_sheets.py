"""Render the full sheets: ``python -m qrlora.world.render_sheets`` (needs npm and ``pip install 'qrlora[world]'``).

Only needed to pre-train bases.  A sheet holds the benchmark's contents by one *hand*: an emoji set whose licence allows
redistribution with credit (see NOTICE).  Everything comes from npm packages of pinned versions, found by code point or
by name.  Hands of one group have the same outlines in other styles (Fluent's four, EmojiTwo's two) and are placed
together, so that the outlines still coincide; every other drawing is placed by its own outline.

The contents are the most distinct single drawings of Noto Color Emoji, without flags, letters, clock faces and most
people; their names are those of the Unicode Common Locale Data Repository.
"""

import argparse
import io
import json
import math
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from .. import optional_dependencies
from ..basis import cache_folder
from .command_line import run_command
from .drawings import SIZE, contents, full_sheet_folder, has_known_drawings, write_sheet

MARGIN = 6
FINE = 4 * SIZE
"""Side in pixels at which vector drawings are rendered before they are cropped to a tile."""
VISIBLE = 8
"""Least opacity, of 255, that counts as drawing: fainter fringes do not decide where a drawing lies."""
OTHER_DRAWINGS = "the built-in bases were trained on other drawings, which resvg-py 0.5.0 rendered from these packages"
NAMES_PACKAGE = "emojibase-data@17.0.0"  # MIT

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, as fractions of the canvas's side."""


class EmojiSet(NamedTuple):
    package: str
    author: str
    licence: str
    """SPDX identifier."""
    group: str
    """Hands of one group have the same outlines."""


GOOGLE, MICROSOFT = "Google Inc.", "Microsoft Corporation"
TWITTER, EMOJITWO = "Twitter, Inc. and other contributors", "Ranks.com (EmojiOne 2.2) and the EmojiTwo contributors"
EMOJI_SETS = {
    "noto": EmojiSet("@iconify-json/noto@1.2.9", GOOGLE, "Apache-2.0", "noto"),
    "noto-v1": EmojiSet("@iconify-json/noto-v1@1.2.5", GOOGLE, "Apache-2.0", "noto-v1"),
    "fluent-3d": EmojiSet("@lobehub/fluent-emoji-3d@1.1.0", MICROSOFT, "MIT", "fluent"),
    "fluent": EmojiSet("@iconify-json/fluent-emoji@1.2.7", MICROSOFT, "MIT", "fluent"),
    "fluent-flat": EmojiSet("@iconify-json/fluent-emoji-flat@1.2.6", MICROSOFT, "MIT", "fluent"),
    "fluent-contrast": EmojiSet("@iconify-json/fluent-emoji-high-contrast@1.2.6", MICROSOFT, "MIT", "fluent"),
    "twemoji": EmojiSet("@iconify-json/twemoji@1.2.5", TWITTER, "CC-BY-4.0", "twemoji"),
    "emojitwo": EmojiSet("@iconify-json/emojione@1.2.3", EMOJITWO, "CC-BY-4.0", "emojitwo"),
    "emojitwo-mono": EmojiSet("@iconify-json/emojione-monotone@1.2.1", EMOJITWO, "CC-BY-4.0", "emojitwo"),
}


class Emoji(NamedTuple):
    name: str
    """The content's name: the CLDR label in lower case without hyphens."""
    code: str
    """Code point, in lower-case hexadecimal digits."""
    unicode_name: str


def normalised_label(label: str) -> str:
    """A CLDR label as a content's name: ``"T-Rex"`` -> ``"t rex"``."""
    return " ".join(label.lower().replace("-", " ").split())


def find_emoji(names: Sequence[str], folder: Path) -> list[Emoji]:
    """The emoji to render for contents, by name; ``folder`` is the unpacked package ``emojibase-data``."""
    by_name = {normalised_label(e["label"]): e["hexcode"] for e in json.loads((folder / "en/data.json").read_text())}
    unicode_names = json.loads((folder / "meta/unicode-names.json").read_text())
    if unknown := [n for n in names if n not in by_name]:
        raise ValueError(f"no emoji is labelled {', '.join(unknown)} in {NAMES_PACKAGE}; correct or drop these names")
    return [Emoji(n, by_name[n].lower(), unicode_names.get(by_name[n], "")) for n in names]


def icon_names(emoji: Emoji, chars: dict[str, str]) -> list[str]:
    """Names under which an emoji set may hold an emoji, the likeliest first; ``chars`` is its map from code points.

    Sets whose map is empty name their drawings by the CLDR label of the year they were drawn in: today's, or an older
    one that is mostly the Unicode standard's name.  Fluent says which of three people is meant, older sets mark flags.
    """
    by_code = [chars[c] for c in (emoji.code, f"{emoji.code}-fe0f") if c in chars]
    label = emoji.name.replace(" ", "-")
    old = normalised_label(emoji.unicode_name).replace(" ", "-")
    return [*by_code, label, old, f"person-{label}", f"flag-for-{label}"]


def icon_svg(icons: dict, name: str) -> str | None:
    """One drawing of an Iconify set to render, as a square SVG document; None if the set lacks it."""
    if name not in icons["icons"]:
        alias = icons.get("aliases", {}).get(name)
        if alias is None:
            return None
        if turned := set(alias) & {"hFlip", "vFlip", "rotate"}:
            raise ValueError(f"drawing {name!r} of set {icons['prefix']!r} is a turned alias ({', '.join(turned)})")
        return icon_svg(icons, alias["parent"])
    icon = icons["icons"][name]
    width, height = (icon.get(k, icons.get(k, 16)) for k in ("width", "height"))  # 16: the format's default
    side = max(width, height)
    left, top = icon.get("left", 0) - (side - width) / 2, icon.get("top", 0) - (side - height) / 2
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {namespaces} viewBox="{left} {top} {side} {side}">{icon["body"]}</svg>'


def outline_box(drawing: Image.Image) -> Box:
    """The bounding box of the visible part of a rendered RGBA drawing."""
    box = drawing.getchannel("A").point([255 * (a >= VISIBLE) for a in range(256)]).getbbox()
    if box is None:
        raise ValueError("the drawing is empty: nothing of it is visible")
    left, top, right, bottom = box
    return left / drawing.width, top / drawing.height, right / drawing.width, bottom / drawing.height


def union_box(boxes: Iterable[Box]) -> Box:
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def tile_square(box: Box) -> Box:
    """The square of the rendered canvas that becomes a tile: centred on the box, as large as the margins allow."""
    left, top, right, bottom = box
    half = max(right - left, bottom - top) / 2 * SIZE / (SIZE - 2 * MARGIN)
    across, down = (left + right) / 2, (top + bottom) / 2
    return across - half, down - half, across + half, down + half


def crop_tile(drawing: Image.Image, square: Box) -> Image.Image:
    """The area ``square`` of a square RGBA drawing, on white, as an RGB tile; outside the drawing is white as well."""
    side = drawing.width
    before = max(0, math.ceil(-min(square[:2]) * side))
    after = max(0, math.ceil((max(square[2:]) - 1) * side))
    canvas = Image.new("RGBA", (side + before + after, side + before + after), "white")
    canvas.alpha_composite(drawing, (before, before))
    left, top, right, bottom = (edge * side + before for edge in square)
    return canvas.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS, box=(left, top, right, bottom))


def npm_install(packages: list[str], folder: Path) -> Path:
    """Install npm packages of emoji sets to render from into a folder outside the source tree; returns the folder
    ``node_modules``."""
    npm = shutil.which("npm")
    if npm is None:
        raise OSError("npm is not installed, and the drawings come from npm packages; install Node.js with npm")
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--omit=peer", "--prefix", str(folder)]
    if code := subprocess.run([npm, "install", *options, *packages]).returncode:
        raise OSError(f"npm could not fetch the drawings, it ended with {code}: what it says is above")
    return folder / "node_modules"


def open_emoji_set(folder: Path) -> Callable[[Emoji], Image.Image | None]:
    """A reader of the emoji set in ``folder``: emoji -> square RGBA drawing, or None where the set has none."""
    if (folder / "assets").is_dir():  # ready-made images named by code point
        return lambda emoji: _read_emoji_image(folder / "assets", emoji)
    optional_dependencies.require("world", reason="drawing SVG")
    import resvg_py

    icons = json.loads((folder / "icons.json").read_text())
    chars = json.loads((folder / "chars.json").read_text())

    def render(emoji: Emoji) -> Image.Image | None:
        """One drawing of an emoji, rendered from SVG."""
        svg = next((s for n in icon_names(emoji, chars) if (s := icon_svg(icons, n))), None)
        if svg is None:
            return None
        png = resvg_py.svg_to_bytes(svg_string=svg, width=FINE, height=FINE, skip_system_fonts=True)
        return Image.open(io.BytesIO(png)).convert("RGBA")

    return render


def _read_emoji_image(folder: Path, emoji: Emoji) -> Image.Image | None:
    """The image of an emoji to render, from an emoji set's folder of WebP files; None: the set has none."""
    for path in (folder / f"{emoji.code}.webp", folder / f"{emoji.code}-fe0f.webp"):
        if path.is_file():
            with Image.open(path) as image:
                return image.convert("RGBA")
    return None


def render_group(hands: dict[str, EmojiSet], emoji: list[Emoji], packages: Path) -> dict[str, dict[str, Image.Image]]:
    """Hand -> name -> tile, for hands that drew the same outlines."""
    sets = {h: open_emoji_set(packages / hand.package.rpartition("@")[0]) for h, hand in hands.items()}
    tiles: dict[str, dict[str, Image.Image]] = {h: {} for h in hands}
    for e in emoji:
        found = {h: get(e) for h, get in sets.items()}
        drawings = {h: d for h, d in found.items() if d is not None}
        if drawings:
            square = tile_square(union_box(outline_box(d) for d in drawings.values()))
            for h, drawing in drawings.items():
                tiles[h][e.name] = crop_tile(drawing, square)
    return tiles


def keep_known_sheet(path: Path, hand: str, tiles: dict[str, Image.Image]) -> str:
    """Write a sheet, but not over one with the drawings that the bases were trained on if it has others. Returns: what
    was done."""
    new = path.with_name(f"{path.stem}.new{path.suffix}")
    write_sheet(new, tiles)
    known = has_known_drawings(new, hand)
    if not known and path.is_file() and has_known_drawings(path, hand):
        new.unlink()
        return f"{path} stays as it is: {OTHER_DRAWINGS}"
    new.replace(path)
    size = f"{path}, {path.stat().st_size / 1e6:.1f} MB"
    return size if known else f"{size}, which is refused where it is read: {OTHER_DRAWINGS}"


def render_sheets(options: argparse.Namespace) -> None:
    """What the command does: fetch the emoji sets, render every hand's sheet and write it."""
    packages = npm_install([NAMES_PACKAGE, *(h.package for h in EMOJI_SETS.values())], options.npm)
    emoji = find_emoji(contents(), packages / NAMES_PACKAGE.rpartition("@")[0])
    options.output.mkdir(parents=True, exist_ok=True)
    for group in dict.fromkeys(h.group for h in EMOJI_SETS.values()):
        for hand, tiles in render_group(
            {k: h for k, h in EMOJI_SETS.items() if h.group == group}, emoji, packages
        ).items():
            path = options.output / f"{hand}.webp"
            print(f"{len(tiles)} of {len(emoji)} drawings: {keep_known_sheet(path, hand, tiles)}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command that renders the sheets."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=full_sheet_folder(), help="the sheets' folder")
    parser.add_argument("--npm", type=Path, default=cache_folder().parent / "npm", help="where npm keeps the packages")
    run_command(render_sheets, parser, arguments)


if __name__ == "__main__":
    main()
