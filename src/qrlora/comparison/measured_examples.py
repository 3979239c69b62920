"""What the measures of a fusion say of images whose answer is known: true images, and wrong fusions of nine kinds."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..evaluation import open_encoder, ssim
from ..families import Base
from ..output_files import atomic
from ..packaged_encoders import efficientnet_lite0
from ..world.classifier_training import is_validation_pair
from ..world.classifiers import load_classifiers, probabilities_by_style
from ..world.drawings import contents
from ..world.ground_truth import true_images
from ..world.image_tensors import pil_from_tensor, tensor_from_pil
from ..world.nearest_drawings import mean_features, rank_of_content, unit_features
from ..world.nearest_truth import beyond_recognition, nearest_truth_margin
from ..world.random_styles import random_style
from ..world.styles import ALL_STYLES
from .row_file import RowFile

LABELS = ("target content", "target style", "image")
SCORES = ("content", "style", "nearest", "lite0", "ssim", "st-lpips")
"""The classifiers' probability of the target's content and style, 0 where they name another; how much nearer the true
image is than every wrong one; how many contents are nearer by EfficientNet-Lite0's features; the likeness to the true
image by SSIM and by ST-LPIPS."""
ENCODERS = ("efficientnet-lite0", "st-lpips")
"""The second opinions, which share nothing with the classifiers; without them their scores are empty."""
WRONG_CONTENT, WRONG_STYLE = ("two contents", "blurred", "blocky"), ("half the style", "two styles", "unnamed style")


def chosen_targets(count: int) -> list[tuple[str, str]]:
    """(content, style) of so many random pairs that the classifiers were not trained on, the first always the same."""
    styles, names = list(ALL_STYLES), contents()
    pairs = [
        (c, s)
        for c in range(len(names))
        for s in range(1, len(styles))
        if bool(is_validation_pair(torch.tensor(c), torch.tensor(s), torch.tensor(0)))
    ]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
    return [(names[pairs[k][0]], styles[pairs[k][1]]) for k in order[:count]]


def examples(content: str, style: str, base: Base, generator: torch.Generator) -> dict[str, Tensor]:
    """{kind: one image (1, 3, 128, 128)} of a target: right, and wrong in every way."""

    def other(names: Sequence[str], but: str) -> str:
        left = [name for name in names if name not in (but, "plain")]
        return left[int(torch.randint(len(left), (), generator=generator))]

    share = 0.35 + 0.3 * float(torch.rand((), generator=generator))
    true, plain = true_images([content], style), true_images([content])
    in_other_style = true_images([content], other(tuple(ALL_STYLES), style))
    of_other_content = true_images([other(contents(), content)], style)
    blurred, blocky = beyond_recognition(true).split(1)
    return {
        "true": true,
        "true, through the VAE": tensor_from_pil(base.decode_image(base.encode_image(true * 2 - 1))),
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


def measure_targets(
    targets: Sequence[tuple[str, str]],
    base: Base,
    rows: RowFile,
    encoders: bool,
    on_target: Callable[[int, int, str, str], Any] | None = None,
) -> None:
    """Write the scores of all kinds of images of each target, but for those that the file has.

    Args: base: whose VAE true images go through.  rows: of LABELS and SCORES.  encoders: whether ENCODERS score, too.
          on_target: (targets done, of how many, the target, "") after each.
    """
    for number, (content, style) in enumerate(targets):
        images = examples(content, style, base, torch.Generator().manual_seed(number))
        left = {kind: x for kind, x in images.items() if not rows.has((content, style, kind))}
        rows.append(
            [content, style, kind, *_scores(image, content, style, encoders, rows.path.parent).values()]
            for kind, image in left.items()
        )
        if on_target is not None:
            on_target(number + 1, len(targets), f"{content} in {style}", "")


@torch.no_grad()
def _scores(image: Tensor, content: str, style: str, encoders: bool, folder: Path) -> dict[str, float | None]:
    """The SCORES of one image (1, 3, 128, 128)."""
    models, true = load_classifiers(), true_images([content], style)
    of_content, of_style = models["content"](image).softmax(1)[0], probabilities_by_style(models["style"](image))[0]
    one, many = contents().index(content), list(ALL_STYLES).index(style)
    found: dict[str, float | None] = {
        "content": float(of_content[one]) * (int(of_content.argmax()) == one),
        "style": float(of_style[many]) * (int(of_style.argmax()) == many),
        "nearest": float(nearest_truth_margin(image, content, style)),
        "lite0": None,
        "ssim": float(ssim(image, true)),
        "st-lpips": None,
    }
    if encoders:
        found["lite0"] = float(_lite0_ranks(folder)(image, content))
        (found["st-lpips"],) = _st_lpips().likeness(pil_from_tensor(image), pil_from_tensor(true)[0])
    return found


@cache
def _st_lpips() -> Any:
    return open_encoder("st-lpips", "cpu")


@cache
def _lite0_ranks(folder: Path) -> Callable[[Tensor, str], Tensor]:
    """(images, content) -> how many contents are nearer, by EfficientNet-Lite0; the means are kept in the folder."""
    network, kept = efficientnet_lite0().eval(), folder / "lite0_means.pt"
    if not kept.exists():
        means = mean_features(network)
        with atomic(kept) as file:
            torch.save(means, file)
    means = torch.load(kept, weights_only=True)
    return lambda images, content: rank_of_content(unit_features(network, images), means, content)
