"""The images of a new study: read from a folder of `qrlora compare`, or from a CSV file of one's own. [PIL]"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ..image_loading import MIN_SIDE, load_image
from ..temporary_files import temporary_folder
from ..text_files import csv_records, csv_rows, read_text

LARGEST = 1024
"""Side in pixels; larger pictures are made this small, for phones."""
COLUMNS = ("method", "pair", "content", "style", "picture")


@dataclass(frozen=True)
class StudyImage:
    """A picture before it gets its random name."""

    kind: str
    method: str
    pair: str
    seed: int
    image: Image.Image = field(repr=False)
    scores: dict[str, float] = field(default_factory=dict)


def find_study_images(source: Path, methods: Sequence[str], seeds: int) -> tuple[list[StudyImage], tuple[str, ...]]:
    """All images of a study's source, of one size, and the methods in their order.

    Args:    source: a folder of `qrlora compare` or the page in it, or a CSV file with the columns COLUMNS and perhaps
             seed.
             methods: which; none: all but the ends of the scale.  seeds: how many pictures of a pair and method.
    Raises:  OSError, ValueError: not such a source, no such method, a picture that is none.
    """
    compared = source.is_dir() or source.suffix == ".md"
    found = images_of_comparison(page_of_comparison(source), seeds) if compared else images_of_csv(source)
    there = list(dict.fromkeys(x.method for x in found if x.kind == "result"))
    chosen = tuple(methods) or tuple(name for name in there if name not in ("none", "oracle"))
    if missing := [name for name in chosen if name not in there]:
        raise ValueError(f"{source} has no pictures of {missing[0]!r}, but of {', '.join(there)}")
    found = [x for x in found if not x.method or x.method in chosen]
    side = min(LARGEST, max(x.image.width for x in found if x.kind == "result"))
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    found.append(StudyImage("noise", "", "", 0, Image.fromarray(noise)))
    return [StudyImage(x.kind, x.method, x.pair, x.seed, _sized(x.image, side), x.scores) for x in found], chosen


def page_of_comparison(source: Path) -> Path:
    """The page of a comparison: this one, or the only one in this folder of `qrlora compare`.

    Raises: FileNotFoundError: none.  ValueError: two, of equal rank and of equal parameters, with other pictures each.
    """
    if not source.is_dir():
        return source
    pages = [path for path in (source / "rank.md", source / "parameters.md") if path.is_file()]
    if not pages:
        raise FileNotFoundError(f"{source} holds no study: `qrlora compare` writes rank.md into its folder")
    if len(pages) > 1:
        raise ValueError(f"{source} holds two comparisons; give the page of one: {' or '.join(map(str, pages))}")
    return pages[0]


def images_of_comparison(page: Path, seeds: int) -> list[StudyImage]:
    """The images of a comparison's page: results from its folder, inputs and true fusions made anew.

    Raises: OSError, ValueError: it is no such page, or the comparison is not done.
    """
    from ..comparison.image_pairs import pairs_from_csv, world_pairs  # loads torch and the world

    told = dict(re.findall(r"\b(pairs|split|style_word|pictures)=(.*?)(?=, [a-z_]+=|$)", _settings(page)))
    word = told["style_word"]
    own = told["pictures"]
    pairs = pairs_from_csv(Path(own), word) if own else world_pairs(int(told["pairs"]), _split(told["split"]), word)
    found = []
    for pair in pairs:
        shown = {"content": pair.content, "style": pair.style, "truth": pair.truth}
        found += [
            StudyImage(kind, "", pair.name, 0, _input_as_trained(x.file)) for kind, x in shown.items() if x is not None
        ]
    rows = csv_records(page.with_name(f"{page.stem}-pictures.csv"))
    order = {job: sorted({int(row["seed"]) for row in rows if row["job"] == job}) for job in {r["job"] for r in rows}}
    known = {"method", "pair", "seed", "device", "job", "encoders"}
    for row in rows:
        index = order[row["job"]].index(int(row["seed"]))
        if index < seeds:
            strip = Image.open(page.parent / "results" / f"{row['job']}.png")
            side = strip.width // len(order[row["job"]])
            image = strip.crop((index * side, 0, (index + 1) * side, strip.height))
            scores = {name: float(x) for name, x in row.items() if name not in known and x}
            found.append(StudyImage("result", row["method"], row["pair"], int(row["seed"]), image, scores))
    return found


def _input_as_trained(picture: bytes) -> Image.Image:
    """An input image of a comparison as training sees it."""
    with temporary_folder() as folder:
        path = folder / "picture"
        path.write_bytes(picture)
        return _open_study_image(path, "an input of the study")


def _settings(page: Path) -> str:
    """The line of a study's page that says what it was made with."""
    lines = read_text(page).splitlines()
    found = next((line for line in lines if line.startswith("Settings: ")), "")
    if not all(f"{name}=" in found for name in ("pairs", "split", "style_word", "pictures")):
        raise ValueError(f"{page} does not say what it was made with: let `qrlora compare` write it again")
    return found


def _split(name: str):
    return "dev" if name == "dev" else "test"


def images_of_csv(path: Path) -> list[StudyImage]:
    """The images that a CSV file lists; files are beside it or absolute.

    Raises: OSError, ValueError, with the line: a column or cell is missing, a picture is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is neither a folder or page of `qrlora compare` nor a CSV file of pictures")
    lines = csv_rows(path)
    head = next(lines, (0, []))[1]
    if missing := [name for name in COLUMNS if name not in head]:
        raise ValueError(f"{path} lacks the column {missing[0]!r}; it needs {', '.join(COLUMNS)}, and may have seed")
    found: dict[tuple[str, str, str, int], StudyImage] = {}
    for number_of_line, cells in lines:
        line, row = f"{path}, line {number_of_line}", dict(zip(head, cells, strict=False))
        if empty := [name for name in COLUMNS if cells and not row.get(name, "").strip()]:
            raise ValueError(f"{line}: {empty[0]} is empty")
        if not cells:
            continue
        seed = row.get("seed") or "0"
        if not seed.isdecimal():
            raise ValueError(f"{line}: seed must be a whole number, got {seed!r}")
        kinds = {
            ("result", row["method"], int(seed)): "picture",
            ("content", "", 0): "content",
            ("style", "", 0): "style",
        }
        for (kind, method, number), column in kinds.items():
            key = kind, method, row["pair"], number
            if kind == "result" and key in found:
                raise ValueError(f"{line}: {row['method']!r} has two pictures of {row['pair']!r} with seed {seed}")
            if key not in found:
                found[key] = StudyImage(*key, _open_study_image(path.parent / row[column], line))
    if not found:
        raise ValueError(f"{path} has no pictures")
    return list(found.values())


def _open_study_image(path: Path, line: str) -> Image.Image:
    """A study's image as people should see it: the middle square, upright, without metadata of place and maker."""
    try:
        size = load_image(path, MIN_SIDE).original
        return load_image(path, min(LARGEST, *size)).image
    except (OSError, ValueError) as error:
        raise ValueError(f"{line}: {error}") from error


def _sized(image: Image.Image, side: int) -> Image.Image:
    return image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
