"""What a study's contact sheet shows: a line for each pair, from the two inputs to the true picture. [PIL]"""

import io

from PIL import Image

from .figure_data import Cell
from .fusion_comparison import RunSummary
from .image_pairs import CaptionedImage, Pair
from .jobs import SampleJob

LINES = 9
"""Pairs that are shown."""


def lines(account: RunSummary) -> list[list[Cell]]:
    """The first pairs: content, style, the first picture of each method, the truth where it is known."""
    done = {(job.variant, job.pair.name): job for job in account.done}
    return [_line(account, pair, done) for pair in account.study.pairs[:LINES]]


def _line(account: RunSummary, pair: Pair, done: dict[tuple[str, str], SampleJob]) -> list[Cell]:
    cells = [Cell("content", _picture(pair.content)), Cell("style", _picture(pair.style))]
    for variant in account.study.variants:
        job = done.get((variant, pair.name))
        if job is None:
            cells.append(Cell(f"{variant}: missing", Image.new("RGB", (64, 64), "white")))
            continue
        strip = Image.open(account.store.pictures(job))
        first = strip.crop((0, 0, strip.width // len(job.seeds), strip.height))
        cells.append(Cell(variant, first, *_verdict(account.store.result(job)["rows"][0])))
    return cells + ([Cell(pair.name, _picture(pair.truth))] if pair.truth else [])


def _verdict(row: dict[str, float]) -> tuple[str, bool | None]:
    """What the judges recognised."""
    if "both" not in row:
        return "", None
    seen = [word for word, score in (("thing", "content"), ("style", "style")) if row[score]]
    return " and ".join(seen) or "neither", bool(row["both"])


def _picture(shown: CaptionedImage) -> Image.Image:
    return Image.open(io.BytesIO(shown.picture))
