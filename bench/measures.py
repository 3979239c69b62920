"""How strict the measures of a fusion are, and how far they agree: true images and wrong fusions of each kind.

    python bench/measures.py --targets 100
    python bench/measures.py --drawn drawn.csv        # and on images that were drawn: columns image, content, style

A target is a content in a style that the classifiers were not trained on together.  Columns, in hundredths of images
that are taken for the target: content and style by the classifiers, both, both where the classifiers are surer than a
threshold each, and nearer to the true image than to every wrong one (`qrlora.world.nearest_truth`); the content among
the nearest 5 % by EfficientNet-Lite0's features (`qrlora.world.nearest_drawings`); SSIM and ST-LPIPS with the true
image beyond a threshold.  The thresholds are the lowest at which 2 % or less of the wrong fusions of half of the
contents pass; everything in the tables is of the other half.  The last table is of agreement: of two measures, in how
many hundredths of the images they say the same, and Cohen's kappa, which is 0 for what chance would give.

Every target is kept in the folder, so that the command goes on where it was ended.
"""

import argparse
import csv
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache
from itertools import combinations
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from harness import arguments
from qrlora.evaluation import open_encoder, ssim
from qrlora.families import open_base
from qrlora.packaged_encoders import efficientnet_lite0
from qrlora.world.classifier_training import is_validation_pair, vae_round_trip
from qrlora.world.classifiers import load_classifiers, probabilities_by_style
from qrlora.world.drawings import contents
from qrlora.world.ground_truth import true_images
from qrlora.world.image_tensors import pil_from_tensor, tensor_from_pil
from qrlora.world.nearest_drawings import mean_features, rank_of_content, unit_features
from qrlora.world.nearest_truth import beyond_recognition, nearest_truth_margin
from qrlora.world.random_styles import random_style
from qrlora.world.styles import ALL_STYLES

WRONG_CONTENT, WRONG_STYLE = ("two contents", "blurred", "blocky"), ("half the style", "two styles", "unnamed style")
GOAL = 0.02
NEAREST_CONTENTS = len(contents()) // 20
"""So many of the contents nearest by features count as recognised: the first alone is right in 39 of 100."""


def examples(content: str, style: str, vae: object, generator: torch.Generator) -> dict[str, Tensor]:
    """{kind: one image (1, 3, 128, 128)} of a target: right, and wrong in every way."""

    def other(names: tuple[str, ...], but: str) -> str:
        left = [name for name in names if name not in (but, "plain")]
        return left[int(torch.randint(len(left), (), generator=generator))]

    share = 0.35 + 0.3 * float(torch.rand((), generator=generator))
    true, plain = true_images([content], style), true_images([content])
    in_other_style = true_images([content], other(tuple(ALL_STYLES), style))
    of_other_content = true_images([other(contents(), content)], style)
    blurred, blocky = beyond_recognition(true).split(1)
    return {
        "true": true,
        "true, through the VAE": vae_round_trip(vae, true),
        "plain": plain,
        "other style": in_other_style,
        "other content": of_other_content,
        "half the style": share * true + (1 - share) * plain,
        "two styles": share * true + (1 - share) * in_other_style,
        "unnamed style": random_style(generator, "cpu")(plain).clamp(0, 1),
        "two contents": share * true + (1 - share) * of_other_content,
        "blurred": blurred,
        "blocky": blocky,
    }


@cache
def lite0_ranks(folder: Path) -> Callable[[Tensor, str], Tensor]:
    """(images, content) -> how many contents are nearer, by EfficientNet-Lite0; the means are kept in the folder."""
    network, kept = efficientnet_lite0().eval(), folder / "lite0_means.pt"
    if not kept.exists():
        torch.save(mean_features(network), kept)
    means = torch.load(kept, weights_only=True)
    return lambda images, content: rank_of_content(unit_features(network, images), means, content)


@torch.no_grad()
def scores(image: Tensor, content: str, style: str, folder: Path) -> dict[str, float]:
    """What all measures say of one image (1, 3, 128, 128)."""
    models, true = load_classifiers(), true_images([content], style)
    of_content, of_style = models["content"](image).softmax(1)[0], probabilities_by_style(models["style"](image))[0]
    one, many = contents().index(content), list(ALL_STYLES).index(style)
    likeness = cached_encoder("st-lpips").likeness(pil_from_tensor(image), pil_from_tensor(true)[0])
    return {
        "content": float(of_content[one]) * (int(of_content.argmax()) == one),
        "style": float(of_style[many]) * (int(of_style.argmax()) == many),
        "nearest": float(nearest_truth_margin(image, content, style)),
        "lite0": float(lite0_ranks(folder)(image, content)),
        "ssim": float(ssim(image, true)),
        "st-lpips": likeness[0],
    }


cached_encoder = cache(lambda name: open_encoder(name, "cpu"))


def lowest_threshold(values: list[float]) -> float:
    """The lowest probability, in hundredths, that GOAL or less of the values exceed."""
    return next(t / 100 for t in range(101) if sum(value > t / 100 for value in values) <= GOAL * len(values))


Rows = dict[str, list[dict[str, float]]]
"""Kind of image -> the scores of each."""
MEASURES = ("content", "style", "both", "sure", "nearest", "lite0", "ssim", "st-lpips")
PAIRS = (
    ("content", "lite0"),
    *combinations(("both", "nearest", "ssim", "st-lpips"), 2),
)
"""Measures that answer one question: which content; whether it is the target."""


def thresholds_of(rows: Rows) -> dict[str, float]:
    """The thresholds, from rows of one half of the contents."""
    wrong = [kind for kind in rows if not kind.startswith("true")]
    kinds = {"content": WRONG_CONTENT, "style": WRONG_STYLE, "ssim": wrong, "st-lpips": wrong}
    return {name: lowest_threshold([row[name] for kind in of for row in rows[kind]]) for name, of in kinds.items()}


def accepted(row: dict[str, float], thresholds: dict[str, float]) -> dict[str, bool]:
    """Measure -> whether it takes an image for the target."""
    return {
        "content": row["content"] > 0,
        "style": row["style"] > 0,
        "both": row["content"] > 0 and row["style"] > 0,
        "sure": all(row[name] > thresholds[name] for name in ("content", "style")),
        "nearest": row["nearest"] > 0,
        "lite0": row["lite0"] < NEAREST_CONTENTS,
        "ssim": row["ssim"] > thresholds["ssim"],
        "st-lpips": row["st-lpips"] > thresholds["st-lpips"],
    }


def table(rows: Rows, thresholds: dict[str, float]) -> str:
    """Images taken for the target, in hundredths, in Markdown."""
    lines = [f"| | {' | '.join(MEASURES)} |", "|---" * (len(MEASURES) + 1) + "|"]
    for kind, of_kind in rows.items():
        said = [accepted(row, thresholds) for row in of_kind]
        shares = (100 * sum(x[name] for x in said) / len(said) for name in MEASURES)
        lines.append(f"| {kind} | {' | '.join(f'{share:.0f}' for share in shares)} |")
    return "\n".join(lines)


def agreement(groups: dict[str, list[dict[str, float]]], thresholds: dict[str, float]) -> str:
    """Of each two measures, in how many hundredths of a group's images they say the same, and Cohen's kappa."""
    from sklearn.metrics import cohen_kappa_score

    said = {name: [accepted(row, thresholds) for row in rows] for name, rows in groups.items() if rows}
    lines = [f"| agreement, kappa | {' | '.join(f'{n}, {len(x)}' for n, x in said.items())} |"]
    lines.append("|---" * (len(said) + 1) + "|")
    for one, other in PAIRS:
        cells = []
        for rows in said.values():
            first, second = [x[one] for x in rows], [x[other] for x in rows]
            same = sum(a == b for a, b in zip(first, second, strict=True)) / len(rows)
            kappa = cohen_kappa_score(first, second) if len({*first, *second}) > 1 else float("nan")
            cells.append(f"{100 * same:.0f}, {kappa:.2f}" if kappa == kappa else f"{100 * same:.0f}, -")
        lines.append(f"| {one} and {other} | {' | '.join(cells)} |")
    return "\n".join(lines)


def chosen_targets(count: int, generator: torch.Generator) -> list[tuple[str, str]]:
    """(content, style) of so many pairs that the classifiers were not trained on, twice over."""
    styles, names = list(ALL_STYLES), contents()
    pairs = [
        (c, s)
        for c in range(len(names))
        for s in range(1, len(styles))
        if bool(is_validation_pair(torch.tensor(c), torch.tensor(s), torch.tensor(0)))
    ]
    order = torch.randperm(len(pairs), generator=generator).tolist()
    return [(names[pairs[k][0]], styles[pairs[k][1]]) for k in order[: 2 * count]]


def measured(targets: Iterable[tuple[str, str]], folder: Path, seconds: float) -> list[dict]:
    """The scores of all kinds of images of each target; what is in the folder is not measured again."""
    kept, begun, vae = folder / "measures.jsonl", time.monotonic(), open_base("tiny-flux", "cpu", "float32").pipe.vae
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    for number, (content, style) in enumerate(targets):
        if number < len(rows):
            assert rows[number]["target"] == [content, style], f"{kept} is of other targets"
            continue
        if time.monotonic() - begun > seconds:
            break
        of_target = torch.Generator().manual_seed(number)
        images = examples(content, style, vae, of_target)
        rows.append(
            {"target": [content, style], "scores": {k: scores(x, content, style, folder) for k, x in images.items()}}
        )
        with kept.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--targets", type=int, default=50, help="to calibrate on, and about as many to report")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="after which to end; go on by calling again"
    )
    parser.add_argument("--drawn", type=Path, help="CSV of images that were drawn: image, content, style")
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    wanted.folder.mkdir(parents=True, exist_ok=True)
    targets = chosen_targets(5 if wanted.quick else wanted.targets, torch.Generator().manual_seed(0))
    halves: tuple[Rows, Rows] = defaultdict(list), defaultdict(list)
    for row in measured(targets, wanted.folder, wanted.seconds):
        half = halves[contents().index(row["target"][0]) // 2 % 2]
        for kind, of_kind in row["scores"].items():
            half[kind].append(of_kind)
    thresholds = thresholds_of(halves[0])
    rows = halves[1]
    print(f"{len(rows['true'])} targets; thresholds {thresholds}, from {len(halves[0]['true'])} others\n")
    groups = {
        "true": rows["true"],
        "wrong": [row for kind in rows if not kind.startswith("true") for row in rows[kind]],
    }
    groups["true and wrong"] = groups["true"] + groups["wrong"]
    if wanted.drawn:
        with wanted.drawn.open(newline="") as file:
            drawn = [
                scores(
                    tensor_from_pil([Image.open(wanted.drawn.parent / x["image"])]),
                    x["content"],
                    x["style"],
                    wanted.folder,
                )
                for x in csv.DictReader(file)
            ]
        groups["drawn"] = rows["drawn"] = drawn
    print(table(rows, thresholds), agreement(groups, thresholds), sep="\n\n")


if __name__ == "__main__":
    main()
