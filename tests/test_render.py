"""The sheets' making, as far as it needs no network: names, placement, sets of drawings."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from qrlora.world import drawings, render_sheets
from qrlora.world.render_sheets import (
    EMOJI_SETS,
    MARGIN,
    SIZE,
    Emoji,
    crop_tile,
    icon_names,
    icon_svg,
    outline_box,
    tile_square,
    union_box,
)

ROOT = Path(__file__).parents[1]


def drawing(*box: int, side: int = 512) -> Image.Image:
    """A black rectangle, its last column and row included, on a transparent square."""
    canvas = Image.new("RGBA", (side, side))
    ImageDraw.Draw(canvas).rectangle(box, fill="black")
    return canvas


def inked(tile: Image.Image) -> tuple[int, int, int, int]:
    """First and one past the last column and row darker than middle grey, as left, top, right, bottom."""
    rows, columns = np.nonzero(np.asarray(tile.convert("L")) < 128)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


@pytest.mark.parametrize(
    "box", [(0, 0, 511, 511), (100, 200, 299, 239), (0, 300, 49, 511), (400, 0, 511, 111), (128, 128, 383, 255)]
)
def test_a_tile_holds_the_whole_drawing_centred_its_larger_side_inside_the_margins(box):
    picture = drawing(*box)
    tile = crop_tile(picture, tile_square(outline_box(picture)))
    assert tile.size == (SIZE, SIZE) and tile.mode == "RGB"
    left, top, right, bottom = inked(tile)
    assert max(right - left, bottom - top) == SIZE - 2 * MARGIN
    assert abs(left - (SIZE - right)) <= 1 and abs(top - (SIZE - bottom)) <= 1
    width, height = box[2] - box[0] + 1, box[3] - box[1] + 1
    assert abs((right - left) * height - (bottom - top) * width) <= max(width, height)  # to the pixel, not stretched
    assert tile.getpixel((0, 0)) == tile.getpixel((SIZE - 1, SIZE - 1)) == (255, 255, 255)


def test_placement_does_not_depend_on_the_resolution_that_a_set_is_drawn_in():
    fine, coarse = drawing(64, 96, 319, 415), drawing(32, 48, 159, 207, side=256)
    assert outline_box(fine) == outline_box(coarse)
    square = tile_square(outline_box(fine))
    difference = np.abs(np.asarray(crop_tile(fine, square), int) - np.asarray(crop_tile(coarse, square), int))
    assert difference.max() <= 16  # at the rectangle's edges


def test_hands_that_drew_the_same_outlines_keep_them_in_one_place(monkeypatch):
    """A halo around one of the drawings moves neither."""
    pictures = {"flat": drawing(128, 128, 383, 383), "halo": drawing(64, 128, 383, 383)}
    pictures["halo"].paste("white", (128, 128, 384, 384))
    monkeypatch.setattr(render_sheets, "open_emoji_set", lambda folder: lambda emoji: pictures[folder.name])
    hands = {h: render_sheets.EmojiSet(f"{h}@1.0", "somebody", "MIT", "group") for h in pictures}
    tiles = render_sheets.render_group(hands, [Emoji("box", "1f4e6", "PACKAGE")], Path())
    assert inked(tiles["halo"]["box"])[2] == inked(tiles["flat"]["box"])[0]


def test_a_sheet_that_the_bases_know_is_not_replaced_by_one_that_they_do_not(monkeypatch, tmp_path):
    """An unknown one is written where there is none, and is said to be refused."""

    def keep(grey: int) -> str:
        drawings._read_sheet.cache_clear()
        return render_sheets.keep_known_sheet(path, "noto", {"robot": Image.new("RGB", (SIZE, SIZE), (grey,) * 3)})

    path = tmp_path / "noto.webp"
    assert "is refused where it is read" in keep(99)
    monkeypatch.setitem(drawings.SHEET_DIGESTS, "noto", (drawings.sheet_digest(drawings._read_sheet(path)),))
    before = path.read_bytes()
    assert "stays as it is" in keep(9)
    assert path.read_bytes() == before and [x.name for x in tmp_path.iterdir()] == ["noto.webp"]
    path.unlink()
    assert "refused" not in keep(99) and path.read_bytes() == before
    drawings._read_sheet.cache_clear()


def test_faint_fringes_do_not_place_a_drawing_and_empty_drawings_are_refused():
    picture = drawing(100, 100, 199, 199)
    ImageDraw.Draw(picture).rectangle((400, 400, 511, 511), fill=(0, 0, 0, render_sheets.VISIBLE - 1))
    assert outline_box(picture) == outline_box(drawing(100, 100, 199, 199))
    with pytest.raises(ValueError, match="nothing of it is visible"):
        outline_box(Image.new("RGBA", (64, 64)))


def test_a_union_holds_all_its_boxes():
    assert union_box([(0.1, 0.3, 0.5, 0.6), (0.2, 0.2, 0.4, 0.9)]) == (0.1, 0.2, 0.5, 0.9)


def test_translucent_colour_is_mixed_with_white():
    picture = Image.new("RGBA", (256, 256), (255, 0, 0, 128))
    assert crop_tile(picture, tile_square(outline_box(picture))).getpixel((64, 64)) == pytest.approx(
        (255, 127, 127), abs=1
    )


def test_names_are_those_of_the_unicode_data_in_plain_words(tmp_path):
    (tmp_path / "en").mkdir()
    (tmp_path / "meta").mkdir()
    labels = {"1F996": "T-Rex", "2652": "Aquarius", "1F916": "robot"}
    (tmp_path / "en/data.json").write_text(json.dumps([{"label": v, "hexcode": k} for k, v in labels.items()]))
    (tmp_path / "meta/unicode-names.json").write_text(json.dumps({"1F996": "T-REX", "1F916": "ROBOT FACE"}))
    assert render_sheets.find_emoji(["robot", "t rex", "aquarius"], tmp_path) == [
        Emoji("robot", "1f916", "ROBOT FACE"),
        Emoji("t rex", "1f996", "T-REX"),
        Emoji("aquarius", "2652", ""),
    ]
    with pytest.raises(ValueError, match="labelled unicorn pony, yeti in emojibase-data.*drop these names"):
        render_sheets.find_emoji(["robot", "unicorn pony", "yeti"], tmp_path)


def test_a_set_is_asked_by_code_point_first_then_by_the_names_of_today_and_of_then():
    robot = Emoji("robot", "1f916", "ROBOT FACE")
    assert icon_names(robot, {"1f916": "machine"})[:3] == ["machine", "robot", "robot-face"]
    assert icon_names(robot, {})[:2] == ["robot", "robot-face"]
    assert icon_names(Emoji("airplane", "2708", "AIRPLANE"), {"2708-fe0f": "jet"})[0] == "jet"


def test_a_drawing_is_found_under_its_alias_made_square_and_a_turned_alias_refused():
    icons = {
        "prefix": "set",
        "width": 32,
        "height": 32,
        "icons": {"cat": {"body": "<path d='M0 0'/>", "width": 48}},
        "aliases": {"kitty": {"parent": "cat"}, "mirrored": {"parent": "cat", "hFlip": True}},
    }
    svg = icon_svg(icons, "kitty")
    assert svg is not None and svg == icon_svg(icons, "cat") and "<path d='M0 0'/>" in svg
    box = re.search(r'viewBox="([^"]+)"', svg)
    assert box is not None and [float(x) for x in box[1].split()] == [0, -8, 48, 48]
    assert icon_svg(icons, "dog") is None
    with pytest.raises(ValueError, match="'mirrored' of set 'set' is a turned alias"):
        icon_svg(icons, "mirrored")


def test_without_npm_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match="npm is not installed.*install Node.js"):
        render_sheets.npm_install(["emojibase-data@17.0.0"], tmp_path / "npm")


def test_a_sheet_of_other_drawings_than_the_bases_were_trained_on_is_told_as_it_is_rendered(
    monkeypatch, tmp_path, capsys
):
    tile = Image.new("RGB", (SIZE, SIZE), "red")
    monkeypatch.setattr(render_sheets, "npm_install", lambda *_: tmp_path)
    monkeypatch.setattr(render_sheets, "find_emoji", lambda *_: [])
    monkeypatch.setattr(render_sheets, "render_group", lambda hands, *_: {hand: {"robot": tile} for hand in hands})
    monkeypatch.setattr("sys.argv", ["render_sheets", "--output", str(tmp_path)])
    render_sheets.main()
    told = [line for line in capsys.readouterr().out.splitlines() if "is refused where it is read" in line]
    assert len(told) == len(EMOJI_SETS) and all("resvg-py 0.5.0" in line for line in told)


def test_every_hand_is_pinned_and_credited_under_a_licence_that_lets_pictures_be_passed_on():
    notice = (ROOT / "NOTICE").read_text()
    texts = {"Apache-2.0": "LICENSE", "MIT": "LICENSES/MIT-Fluent-Emoji.txt", "CC-BY-4.0": "LICENSES/CC-BY-4.0.txt"}
    for hand in EMOJI_SETS.values():
        assert re.fullmatch(r"@[\w-]+/[\w-]+@\d+\.\d+\.\d+", hand.package)
        assert texts[hand.licence].split("/")[-1] in notice and (ROOT / texts[hand.licence]).is_file()
        assert hand.author.split()[0] in notice
