"""How strict the measures of a fusion are: true images and wrong fusions of each kind that are taken for the target.

    python bench/measures.py --targets 100

A target is a content in a style that the classifiers were not trained on together.  Columns, in hundredths: content and
style by the classifiers, both, both where the classifiers are surer than a threshold each, and nearer to the true image
than to every wrong one (`qrlora.world.nearest_truth`).  The thresholds are the lowest at which 2 % or less of the wrong
fusions of half of the contents pass; everything in the table is of the other half.
"""

from collections import defaultdict

import torch
from torch import Tensor

from harness import arguments
from qrlora.families import open_base
from qrlora.world.classifier_training import is_validation_pair, vae_round_trip
from qrlora.world.classifiers import load_classifiers, probabilities_by_style
from qrlora.world.drawings import contents
from qrlora.world.ground_truth import true_images
from qrlora.world.nearest_truth import beyond_recognition, nearest_truth_margin
from qrlora.world.random_styles import random_style
from qrlora.world.styles import ALL_STYLES

WRONG_CONTENT, WRONG_STYLE = ("two contents", "blurred", "blocky"), ("half the style", "two styles", "unnamed style")
GOAL = 0.02


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


@torch.no_grad()
def scores(image: Tensor, content: str, style: str) -> dict[str, float]:
    """What both measures say of one image."""
    models = load_classifiers()
    of_content, of_style = models["content"](image).softmax(1)[0], probabilities_by_style(models["style"](image))[0]
    one, many = contents().index(content), list(ALL_STYLES).index(style)
    return {
        "content": float(of_content[one]) * (int(of_content.argmax()) == one),
        "style": float(of_style[many]) * (int(of_style.argmax()) == many),
        "nearest": float(nearest_truth_margin(image, content, style)),
    }


def lowest_threshold(values: list[float]) -> float:
    """The lowest probability, in hundredths, that GOAL or less of the values exceed."""
    return next(t / 100 for t in range(101) if sum(value > t / 100 for value in values) <= GOAL * len(values))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--targets", type=int, default=50, help="to calibrate on, and about as many to report")
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    wanted.targets = 10 if wanted.quick else wanted.targets
    generator = torch.Generator().manual_seed(0)
    styles, names = list(ALL_STYLES), contents()
    targets = [
        (c, s)
        for c in range(len(names))
        for s in range(1, len(styles))
        if bool(is_validation_pair(torch.tensor(c), torch.tensor(s), torch.tensor(0)))
    ]
    chosen = [targets[k] for k in torch.randperm(len(targets), generator=generator).tolist()]
    vae = open_base("tiny-flux", "cpu", "float32").pipe.vae
    found: dict[bool, dict[str, list[dict[str, float]]]] = {half: defaultdict(list) for half in (False, True)}
    for c, s in chosen[: 2 * wanted.targets]:
        for kind, image in examples(names[c], styles[s], vae, generator).items():
            found[c // 2 % 2 == 0][kind].append(scores(image, names[c], styles[s]))
    thresholds = {
        name: lowest_threshold([row[name] for kind in kinds for row in found[True][kind]])
        for name, kinds in (("content", WRONG_CONTENT), ("style", WRONG_STYLE))
    }
    print(f"{len(found[False]['true'])} targets; thresholds {thresholds}, from {len(found[True]['true'])} others")
    print(f"{'':24}{'content':>9}{'style':>9}{'both':>9}{'sure':>9}{'nearest':>9}")
    for kind, rows in found[False].items():
        columns = {
            "content": [row["content"] > 0 for row in rows],
            "style": [row["style"] > 0 for row in rows],
            "both": [row["content"] > 0 and row["style"] > 0 for row in rows],
            "sure": [all(row[name] > thresholds[name] for name in thresholds) for row in rows],
            "nearest": [row["nearest"] > 0 for row in rows],
        }
        print(f"{kind:24}" + "".join(f"{100 * sum(column) / len(column):9.1f}" for column in columns.values()))


if __name__ == "__main__":
    main()
