"""Sums of three attributes: contents, styles and frames crossed, by method and by words."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from ..comparison.crossed_adapters import check_methods
from ..comparison.crossed_settings import AUTO, CrossedSettings
from ..comparison.figure_data import Cell, ContactSheet, ReproducedResult
from ..comparison.row_file import read_rows
from ..comparison.statistics import in_hundredths
from ..comparison.summary_tables import TableRow
from ..comparison.three_attributes import PARTS, ROWS, SCORES, ThreeAttributes, check_sum, scored_sums
from ..world.frames import framed_image
from .request import ReproductionRequest

CONTENTS, STYLES, FRAMES = 4, 3, 3
"""At most; each is trained on once, and each three are added."""
METHODS = ("qr", "lora")
WORDINGS = ({}, {"content_word": AUTO, "style_word": AUTO})
"""Settings of `CrossedSettings`: under placeholders, and under known words."""


def attribute_sums(request: ReproductionRequest) -> ReproducedResult:
    """Content, style and frame added, of adapters that are trained once each: what is right in the images.

    The request's pairs are contents, styles and frames, up to CONTENTS, STYLES and FRAMES; its methods: specs of sums
    of adapters, in place of METHODS.  The table shows all that the folder has.
    """
    common = CrossedSettings(
        root=request.folder / "attributes",
        base=request.base,
        split=request.split,
        contents=min(CONTENTS, request.pairs),
        styles=min(STYLES, request.pairs),
        seed=request.seed,
        device=request.device,
    )
    frames = min(FRAMES, request.pairs)
    methods = [request.spec(x) for x in request.methods or METHODS]
    for method in methods:
        check_sum(method)
    check_methods(common, methods)
    runs = [(replace(common, **words), method) for words in WORDINGS for method in methods]
    works = {settings.labels(method)[2]: partial(_run, settings, frames, method) for settings, method in runs}
    seconds = request.run_crossed(works)
    rows: list[TableRow] = []
    for line in scored_sums(read_rows(common.folder / ROWS)):
        about = {"part": line.part, "method": line.method, "less": line.less, "images": line.count}
        scores = {x: in_hundredths(line.scores[x]) for x in SCORES}
        rows.append({**about, **scores, "seconds": "" if line.less else _rounded(seconds.get(line.method))})
    notes = (
        "; ".join(f"{part}: {meaning}" for part, meaning in PARTS.items()) + ".",
        "In hundredths, with intervals (95 %) that resample contents, style images and frames; 'less': paired "
        "differences to that method. Style and frame are those of the nearest among the content's true images in all "
        "styles and frames, a frame being over the style or beneath it; the content is right if in that style and "
        "frame no other content's is nearer. ssim: with the likelier of the two orders.",
        "seconds: what this call took for the method's adapters and images; what the folder had costs nothing.",
    )
    return ReproducedResult(f"Three attributes added, {request.base}", rows, notes, _sheet(runs, frames))


def _run(settings: CrossedSettings, frames: int, spec: str) -> None:
    """Make the rows of one method."""
    ThreeAttributes(settings, frames).run(spec)


def _rounded(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.0f}"


def _sheet(runs: Sequence[tuple[CrossedSettings, str]], count: int) -> ContactSheet:
    """The k-th content, style and frame, seed 0, by each method, before the true image."""
    shown = [(method, ThreeAttributes(settings, count)) for settings, method in runs]
    lines = []
    for k in range(count):
        _, first = shown[0]
        content, (style, _), (frame, _) = first.adapters.contents[k], first.adapters.styles[k], first.frames[k]
        cells = [Cell(attributes.settings.labels(x)[2], attributes.three_image(x, k)) for x, attributes in shown]
        lines.append([*cells, Cell(f"truth: {content}, {style}, {frame}", framed_image(content, style, frame))])
    return ContactSheet(lines)
