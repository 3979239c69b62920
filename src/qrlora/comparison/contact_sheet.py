"""The contact sheet of a comparison: a row of images for each pair, from the two inputs to the true image. [PIL]"""

import io

from PIL import Image

from .figure_data import Cell
from .fusion_comparison import RunSummary
from .image_pairs import CaptionedImage, Pair
from .jobs import SampleJob

MAX_PAIRS = 9
"""Rows of a sheet at most."""
ROLES = "content", "style"


def sheet_rows(summary: RunSummary) -> list[list[Cell]]:
    """Rows of the first pairs: content, style, the first image of each method, the true image where it is known."""
    done = {(job.variant, job.pair.name): job for job in summary.done}
    return [_sheet_row(summary, pair, done) for pair in summary.comparison.pairs[:MAX_PAIRS]]


def _sheet_row(summary: RunSummary, pair: Pair, done: dict[tuple[str, str], SampleJob]) -> list[Cell]:
    """A row of the contact sheet: the two inputs, each method's first image, the true image."""
    cells = [Cell("content", _open_image(pair.content)), Cell("style", _open_image(pair.style))]
    for variant in summary.comparison.variants:
        job = done.get((variant, pair.name))
        if job is None:
            cells.append(Cell(f"{variant}: missing", Image.new("RGB", (64, 64), "white")))
            continue
        strip = Image.open(summary.store.pictures(job))
        first = strip.crop((0, 0, strip.width // len(job.seeds), strip.height))
        cells.append(Cell(variant, first, *_recognised(summary.store.result(job)["rows"][0])))
    return cells + ([Cell(pair.name, _open_image(pair.truth))] if pair.truth else [])


def _recognised(row: dict[str, float]) -> tuple[str, list[bool]]:
    """A cell's note: (content and style with marks, whether the classifiers recognised each); ("", []) without ground
    truth."""
    right = [bool(row[name]) for name in ROLES] if "both" in row else []
    return "\n".join(f"{name} {'✓' if x else '✗'}" for name, x in zip(ROLES, right, strict=False)), right


def _open_image(image: CaptionedImage) -> Image.Image:
    return Image.open(io.BytesIO(image.file))
