"""The findings' table: sums of crossed contents and styles, by method, words, style images, strengths and seeds."""

import time
from dataclasses import dataclass, replace

from ..comparison.crossed_fusion import CrossedFusion, CrossedSettings
from ..comparison.crossed_tables import SCORES, in_hundredths, read_rows, scored_methods
from ..comparison.figure_data import Cell, ContactSheet, ReproducedResult
from ..comparison.summary_tables import TableRow
from ..world.ground_truth import true_image
from .request import ReproductionRequest

CONTENTS = 6
"""Contents, and style images, at most; each of the pairs on the sheet has a new one of both."""
WORDS = {"content_word": "auto", "style_word": "auto"}


@dataclass(frozen=True)
class Variant:
    """A method with settings of `CrossedSettings`."""

    method: str
    settings: dict
    seeds: int = 1
    """Seeds of training."""
    title: str = ""
    """On the contact sheet; "": not shown."""


VARIANTS = (
    Variant("qr", {}, 2, "qr"),
    Variant("lora", {}, 2, "lora"),
    Variant("qr", WORDS, 2, "qr, known words"),
    Variant("lora", WORDS, 2, "lora, known words"),
    Variant("qr", {"content_word": "auto"}),
    Variant("lora", {"content_word": "auto"}),
    Variant("qr", {"style_word": "auto"}),
    Variant("qr", {"style_images": 4}),
    Variant("qr", {**WORDS, "style_images": 2}),
    Variant("qr", {**WORDS, "style_images": 4}, 2),
    Variant("lora", {**WORDS, "style_images": 4}),
    Variant("qr", {**WORDS, "style_images": 8}, 1, "qr, known words, 8 images"),
    Variant("lora", {"content_strength": 0.7}),
    Variant("qr", {"content_strength": 1.3}),
)
"""The rows of the table, those first that the others lean on."""


def crossed_sums(request: ReproductionRequest) -> ReproducedResult:
    """Every variant on one base: each adapter alone, with words that the base knows, and all sums.

    The request's pairs are contents, and as many style images, up to CONTENTS; its seed is the first seed of training.
    """
    count = min(CONTENTS, request.pairs)
    changed = [f":{name}={value}" for name in ("rank", "steps") if (value := getattr(request, name)) is not None]
    common = CrossedSettings(
        root=request.folder / "crossed",
        base=request.base,
        contents=count,
        styles=count,
        seed=request.seed,
        device=request.device,
    )
    runs = [(variant, request.seed + k) for variant in VARIANTS for k in range(variant.seeds)]
    seconds: dict[str, float] = {}
    for done, (variant, seed) in enumerate(runs, 1):
        started = time.monotonic()
        crossed = CrossedFusion(replace(common, **variant.settings, seed=seed))
        label = crossed.labels(variant.method + "".join(changed))[2]
        crossed.run(variant.method + "".join(changed))
        seconds[label] = time.monotonic() - started
        if request.on_job is not None:
            request.on_job(done, len(runs), label, "")
    rows: list[TableRow] = []
    for line in scored_methods(read_rows(common.folder / "rows.csv")):
        scores = {score: in_hundredths(line.scores[score]) for score in SCORES}
        taken = f"{seconds[line.method]:.0f}" if line.part == "sum" and line.method in seconds and not line.less else ""
        about = {"part": line.part, "method": line.method, "less": line.less, "images": line.count}
        rows.append({**about, **scores, "seconds": taken})
    notes = (
        "In hundredths, with intervals (95 %) that resample contents, style images and, of several seeds, those of "
        "training. 'less': paired differences to that method. What each score means: docs/findings.md.",
        "seconds: what this call took for the method's adapters and images; what the folder had costs nothing.",
    )
    return ReproducedResult(
        f"Sums of crossed contents and styles, {request.base}", rows, notes, _sheet(common, count, "".join(changed))
    )


def _sheet(common: CrossedSettings, count: int, changed: str) -> ContactSheet:
    """The k-th content in the k-th style, seed 0, by the variants that are shown, between what is given and the true
    image."""
    shown = [(x, CrossedFusion(replace(common, **x.settings))) for x in VARIANTS if x.title]
    lines = []
    for k in range(count):
        content, (style, (other, *_)) = shown[0][1].contents[k], shown[0][1].styles[k]
        cells = [Cell(content, true_image(content, "plain")), Cell(style, true_image(other, style))]
        cells += [Cell(x.title, crossed.draw_sum(x.method + changed, k)) for x, crossed in shown]
        lines.append([*cells, Cell("truth", true_image(content, style))])
    return ContactSheet(lines)
