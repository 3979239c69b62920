"""The findings' table: sums of crossed contents and styles, by method, words, style images, strengths and seeds."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ..comparison.crossed_adapters import CrossedAdapters, NoRoomForSlots, check_methods
from ..comparison.crossed_fusion import CrossedFusion
from ..comparison.crossed_settings import EQUAL_PARAMETERS, CrossedSettings
from ..comparison.crossed_tables import (
    FORGETTING_SCORES,
    ORACLE_PAIRS,
    SCORES,
    ScoredMethod,
    by_style,
    label_of_seed,
    method_and_seed,
    scored_methods,
)
from ..comparison.decomposition import FORGETTING_PARTS, SUM
from ..comparison.figure_data import Cell, ContactSheet, ReproducedResult
from ..comparison.method_specs import spec_of_adapters
from ..comparison.row_file import read_rows
from ..comparison.statistics import in_hundredths
from ..comparison.summary_tables import TableRow
from ..comparison.training_settings import ranks_and_trained_parameters
from ..world.ground_truth import true_image
from .request import ReproductionRequest

CONTENTS = 6
"""Contents, and style images, at most; each of the pairs on the sheet has a new one of both."""
WORDS = {"content_word": "auto", "style_word": "auto"}
FORGETTING = {"forgetting": True}
FILTERS = {"content_filters": True}


@dataclass(frozen=True)
class Variant:
    """A method with settings of `CrossedSettings`."""

    method: str
    settings: dict
    seeds: int = 1
    """Seeds of training."""
    title: str = ""
    """On the contact sheet; "": not shown."""


SHARED_LAYERS = {
    0.003: ("qr", *(f"qr:rule={x}" for x in ("ties", "dare", "knots", "peft-linear"))),
    0.002: (
        *("lora", *(f"lora:rule={x}" for x in ("ties", "dare", "knots", "peft-linear"))),
        *("k-lora", "k-lora-code", "lora-switch", "lora-composite"),
    ),
}
"""On all attention layers, where merging rules differ most: {learning rate: methods}."""
VARIANTS = (
    Variant("qr", FORGETTING, 2),
    Variant("lora", FORGETTING, 2, "lora"),
    Variant("qr", WORDS | FORGETTING, 2),
    Variant("lora", WORDS | FORGETTING, 2),
    Variant("qr", {"content_word": "auto"}),
    Variant("lora", {"content_word": "auto"}),
    Variant("qr", {"style_word": "auto"}),
    Variant("qr", {"style_images": 4}),
    Variant("qr", {**WORDS, "style_images": 2}),
    Variant("qr", {**WORDS, **FORGETTING, "style_images": 4}, 2),
    Variant("lora", {**WORDS, **FORGETTING, "style_images": 4}),
    Variant("qr", {**WORDS, "style_images": 8}),
    Variant("lora", {**WORDS, "style_images": 8}),
    Variant("qr", {**WORDS, **FILTERS}, 2, "qr, words and copies"),
    Variant("lora", {**WORDS, **FILTERS}),
    Variant("qr", {**WORDS, **FILTERS, "style_images": 4}),
    Variant("lora", {**WORDS, **FILTERS, "style_images": 4}),
    Variant("qr", {**WORDS, **FILTERS, "style_images": 8}, 1, "qr, and 8 images"),
    Variant("lora", {**WORDS, **FILTERS, "style_images": 8}, 1, "lora, and 8 images"),
    Variant("qr", FILTERS),
    Variant("lora", {"content_strength": 0.7}),
    Variant("qr", {"content_strength": 1.3}),
    Variant("lora", {**WORDS, "equal": "parameters"}),
    Variant("ortha", WORDS),
    Variant("qr-minor", WORDS),
    Variant("qr-direct:content/learning_rate=0.001:style/learning_rate=0.0007", WORDS),
    Variant("pissa:content/learning_rate=0.001:style/learning_rate=0.0007", WORDS),
    *(
        Variant(f"{method}:targets=attention:learning_rate={rate:g}", WORDS)
        for rate, names in SHARED_LAYERS.items()
        for method in names
    ),
    Variant("oracle", WORDS, 1, "oracle"),
)
"""The rows of the table, those first that the others lean on; rates from the development split (docs/log.md)."""
DEV_VARIANTS = (
    Variant("qr", {}, 1, "qr"),
    Variant("lora", {}, 1, "lora"),
    Variant("qr", {"content_word": "auto"}),
    Variant("qr", {"style_word": "nearest"}),
    Variant("qr", {"style_word": "auto"}),
)
"""The rows of the table of the development split, where the choices were made."""
VARIANTS_BY_NAME = (
    Variant("qr", WORDS, 1, "qr, known words"),
    Variant("lora", WORDS, 1, "lora, known words"),
)
"""The rows of the table with held-out hands as styles."""

NOTES = (
    "In hundredths, with intervals (95 %) that resample contents, style images and, of several seeds, those of "
    "training. 'less': paired differences to that method. What each score means: docs/measures.md.",
    "rank: of the content's and the style's adapter; trained: parameters of both together. Methods of one rank are "
    "alike in their files, those of one count in what is trained.",
    "preserved: SSIM of an image that asks for no adapter with the base's own of the same seed (method none); leaked: "
    "how sure the classifiers are of the adapter's own content (its style image's) and style there. Captions with an "
    "adapter's own word are left out; what the word meant before is in the last two parts.",
    "By style: both right and ssim of sums under placeholders and under known words; the known word that is nearest to "
    "the style, with the base's loss in times its loss with the placeholder.",
    "seconds: what this call took for the method's adapters and images; what the folder had costs nothing.",
)


def crossed_sums(request: ReproductionRequest) -> ReproducedResult:
    """Every variant on one base: each adapter alone, with words that the base knows, and all sums.

    The request's pairs are contents, and as many style images, up to CONTENTS; its seed is the first seed of training;
    its methods: names, whose variants are all run, or further specs, under placeholders.  The tables show all that the
    folder has.
    """
    count = min(CONTENTS, request.pairs)
    common = CrossedSettings(
        root=request.folder / "crossed",
        base=request.base,
        split=request.split,
        truth=request.truth,
        contents=count,
        styles=count,
        seed=request.seed,
        device=request.device,
    )
    variants, left_out = _variants(request), []
    if request.methods:
        check_methods(common, [variant.method for variant in variants])
    else:
        variants, left_out = _those_that_fit(common, variants)
    runs = {}
    for variant, k in ((x, k) for x in variants for k in range(x.seeds)):
        settings = replace(common, **variant.settings, seed=request.seed + k)
        runs[settings.labels(variant.method)[2]] = partial(_run, settings, variant.method)
    seconds = request.run_crossed(runs)
    found, lora = read_rows(common.folder / "rows.csv"), request.spec("lora")
    sums = scored_methods([row for row in found if row["part"] == SUM], lora)
    forgetting = scored_methods([row for row in found if row["part"] in FORGETTING_PARTS], lora)
    further = {
        f"{title} differences to {lora}": [_scores(line) for line in lines if line.less == lora]
        for title, lines in {"The sums'": sums, "Forgetting's": forgetting}.items()
    }
    further["Merging rules, differences to the adapters' own"] = _by_rule(found)
    further |= _by_style(found)
    by_name = ", the styles of held-out hands" * (request.truth == "by name")
    return ReproducedResult(
        f"Sums of crossed contents and styles{by_name}, {request.base}",
        [_scores(line) | _trained(common, line, seconds) for line in scored_methods(found)],
        (*NOTES, *left_out),
        _sheet(common, count, variants),
        further={title: rows for title, rows in further.items() if rows},
    )


def _variants(request: ReproductionRequest) -> list[Variant]:
    """The variants of the request's split and methods, with its rank and steps in their specs."""
    listed = DEV_VARIANTS if request.split == "dev" else VARIANTS
    listed = VARIANTS_BY_NAME if request.truth == "by name" else listed
    names = [x.method.partition(":")[0] for x in listed]
    chosen = [x for x, name in zip(listed, names, strict=True) if not request.methods or name in request.methods]
    chosen += [Variant(spec, {}, 1, spec) for spec in request.methods if spec not in names]
    return [replace(x, method=request.spec(x.method)) for x in chosen]


def _those_that_fit(common: CrossedSettings, variants: Sequence[Variant]) -> tuple[list[Variant], list[str]]:
    """The variants that the base has room for, and a note on each of the others. Raises as `check_methods`."""
    reasons: dict[str, str] = {}
    for variant in variants:
        try:
            check_methods(common, [variant.method])
        except NoRoomForSlots as error:
            reasons[variant.method] = f"left out: {error}."
    return [x for x in variants if x.method not in reasons], [*reasons.values()]


def _run(settings: CrossedSettings, spec: str) -> None:
    """Make the rows of one variant."""
    CrossedFusion(settings).run(spec)


def _scores(line: ScoredMethod) -> TableRow:
    """A line's method and its scores."""
    about = {"part": line.part, "method": line.method, "less": line.less, "images": line.count}
    scores = dict.fromkeys((*SCORES, *FORGETTING_SCORES))
    return {**about, **{x: in_hundredths(line.scores[x]) if x in line.scores else "" for x in scores}}


def _by_style(found: list[dict[str, str]]) -> dict[str, list[TableRow]]:
    """{title: the sums of each method and seed beside those under known words, style by style}; [] without them."""
    tables = {}
    for label in dict.fromkeys(row["method"] for row in found):
        method, seed = method_and_seed(label)
        tables[f"By style, {label}"] = by_style(
            found, label, label_of_seed(f"{method}, auto content, auto style", seed)
        )
    return tables


def _by_rule(found: list[dict[str, str]]) -> list[TableRow]:
    """The sums of each merging rule less those that the method itself makes of the same adapters."""
    sums = [row for row in found if row["part"] == SUM]
    same: dict[str, list[str]] = {}
    for label in dict.fromkeys(row["method"] for row in sums):
        spec = _spec_of_label(label)
        same.setdefault(spec_of_adapters(spec) + label.removeprefix(spec), []).append(label)
    return [
        _scores(line)
        for own, labels in same.items()
        if own in labels and len(labels) > 1
        for line in scored_methods([row for row in sums if row["method"] in labels], own)
        if line.less
    ]


def _spec_of_label(label: str) -> str:
    """The spec of a method from its label in the rows."""
    return re.split(", | ", label, maxsplit=1)[0]  # a comma alone is between targets


def _trained(common: CrossedSettings, line: ScoredMethod, seconds: Mapping[str, float]) -> TableRow:
    """Of a sum's line: the rank, the count of trained parameters, and what it took; else empty."""
    if line.less or line.part not in (SUM, ORACLE_PAIRS):
        return {"rank": "", "trained": "", "seconds": ""}
    taken = f"{seconds[line.method]:.0f}" if line.method in seconds else ""
    return {**_rank_and_trained(common, line.method), "seconds": taken}


def _rank_and_trained(common: CrossedSettings, label: str) -> dict[str, str]:
    """The ranks of a method's adapters and the count of their trained parameters, from its label in the rows."""
    equal = "parameters" if EQUAL_PARAMETERS in label else "rank"
    adapters = CrossedAdapters(replace(common, equal=equal))
    ranks, count = ranks_and_trained_parameters(adapters.base, adapters.training_settings(_spec_of_label(label)))
    return {"rank": ", ".join(map(str, dict.fromkeys(ranks))), "trained": f"{count:,}"}


def _sheet(common: CrossedSettings, count: int, variants: Sequence[Variant]) -> ContactSheet | None:
    """The k-th content in the k-th style, seed 0, by the variants that are shown, between what is given and the true
    image. None: none of them is shown."""
    shown = [(x, CrossedFusion(replace(common, **x.settings))) for x in variants if x.title]
    if not shown:
        return None
    lines = []
    for k in range(count):
        content, (style, (other, *_)) = shown[0][1].contents[k], shown[0][1].styles[k]
        cells = [Cell(content, true_image(content, "plain")), Cell(style, true_image(other, style))]
        cells += [Cell(x.title, crossed.pair_image(x.method, k)) for x, crossed in shown]
        lines.append([*cells, Cell("truth", true_image(content, style))])
    return ContactSheet(lines)
