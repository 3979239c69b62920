"""How strict the measures of a fusion are, and how far they agree: tables of the rows of `measured_examples`.

The thresholds are the lowest at which MAX_FALSE_ALARMS or less of the wrong fusions of half of the contents pass; the
tables are of the other half.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

from ..world.drawings import contents
from .measured_examples import WRONG_CONTENT, WRONG_STYLE
from .statistics import cohens_kappa

MAX_FALSE_ALARMS = 0.02
NEAREST_CONTENTS = len(contents()) // 20
"""So many of the contents nearest by features count as recognised: the first alone is right in 39 of 100."""
MEASURES = {
    "content": "the classifier names the target's content",
    "style": "the classifier names the target's style",
    "both": "both of them",
    "sure": "both are surer than a threshold each",
    "nearest": "nearer to the true image than to every wrong one",
    "lite0": f"the content is among the nearest {NEAREST_CONTENTS} by EfficientNet-Lite0's features",
    "ssim": "SSIM with the true image is above a threshold",
    "st-lpips": "likeness to the true image by ST-LPIPS is above a threshold",
}
PAIRS = (("content", "lite0"), *combinations(("both", "nearest", "ssim", "st-lpips"), 2))
"""Measures that answer one question: which content; whether it is the target."""
Scores = Mapping[str, float]
"""{score: value} of one image, without those that are empty."""
Kinds = dict[str, list[Scores]]
"""Kind of image -> the scores of each."""


def split_by_content(rows: Sequence[Mapping[str, str]]) -> tuple[Kinds, Kinds]:
    """The rows of half of the contents, for thresholds, and those of the other half."""
    halves: tuple[Kinds, Kinds] = ({}, {})
    for row in rows:
        half = halves[contents().index(row["target content"]) // 2 % 2]
        scores = {name: float(row[name]) for name in row if row[name] and name in MEASURES}
        half.setdefault(row["image"], []).append(scores)
    return halves


def thresholds_of(kinds: Kinds) -> dict[str, float]:
    """The thresholds, from rows of one half of the contents; without those of measures that have no score."""
    wrong = [kind for kind in kinds if not kind.startswith("true")]
    of = {"content": WRONG_CONTENT, "style": WRONG_STYLE, "ssim": wrong, "st-lpips": wrong}
    values = {name: [row[name] for kind in some for row in kinds[kind] if name in row] for name, some in of.items()}
    return {name: _lowest_threshold(some) for name, some in values.items() if some}


def _lowest_threshold(values: Sequence[float]) -> float:
    """The lowest score, in steps of a hundredth, that MAX_FALSE_ALARMS or less of the values exceed."""
    return next(t / 100 for t in range(101) if sum(x > t / 100 for x in values) <= MAX_FALSE_ALARMS * len(values))


def accepted(row: Scores, thresholds: Mapping[str, float]) -> dict[str, bool]:
    """Measure -> whether it takes an image for the target; of the measures that the image has scores of."""
    found = {
        "content": row["content"] > 0,
        "style": row["style"] > 0,
        "both": row["content"] > 0 and row["style"] > 0,
        "sure": all(row[name] > thresholds[name] for name in ("content", "style")),
        "nearest": row["nearest"] > 0,
    }
    if "lite0" in row:
        found["lite0"] = row["lite0"] < NEAREST_CONTENTS
    return found | {name: row[name] > thresholds[name] for name in ("ssim", "st-lpips") if name in row}


def strictness(kinds: Kinds, thresholds: Mapping[str, float]) -> list[dict[str, str]]:
    """A line for each kind of image: in how many hundredths each measure takes it for the target."""
    lines = []
    for kind, rows in kinds.items():
        said = [accepted(row, thresholds) for row in rows]
        shares = {name: 100 * sum(x[name] for x in said) / len(said) for name in said[0]}
        lines.append({"image": kind, **{name: f"{share:.0f}" for name, share in shares.items()}})
    return lines


def agreement(kinds: Kinds, thresholds: Mapping[str, float]) -> list[dict[str, str]]:
    """A line for each two measures: in how many hundredths of the images they say the same, and Cohen's kappa, which
    is 0 for what chance would give; "-" where both say one thing of all images."""
    true, wrong = kinds["true"], [row for kind in kinds if not kind.startswith("true") for row in kinds[kind]]
    groups = {"true": true, "wrong": wrong, "true and wrong": true + wrong}
    said = {name: [accepted(row, thresholds) for row in rows] for name, rows in groups.items()}
    lines = []
    for one, other in PAIRS:
        if one not in said["true"][0] or other not in said["true"][0]:
            continue
        line = {"agreement, kappa": f"{one} and {other}"}
        for name, rows in said.items():
            first, second = [x[one] for x in rows], [x[other] for x in rows]
            same = sum(a == b for a, b in zip(first, second, strict=True)) / len(rows)
            kappa = cohens_kappa(first, second)
            line[f"{name}, {len(rows)}"] = f"{100 * same:.0f}, " + (f"{kappa:.2f}" if kappa == kappa else "-")
        lines.append(line)
    return lines
