"""Figures 9 and 26: a content in several styles at once, and prompt control with two adapters applied."""

import io
import itertools
import statistics
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..comparison.figure_data import Cell, ContactSheet, ReproducedResult
from ..comparison.image_pairs import FUSED_PROMPT, world_pairs
from ..comparison.summary_tables import TableRow
from ..evaluation import ssim
from ..sampling import generate
from ..world.captions import CONTENT, CONTENT_TRAINING_PROMPT, STYLE, caption
from ..world.classified_images import classify_images
from ..world.classifiers import load_classifiers
from ..world.demo import OTHER_CONTENT
from ..world.ground_truth import true_images
from ..world.image_tensors import pil_from_tensor, tensor_from_pil
from ..world.styles import ALL_STYLES
from .request import ReproductionRequest

METHODS_SHOWN = ("qr", "lora")
STYLE_COUNT = 3
"""Styles in figure 9: with the content four attributes."""
IMAGES_PER_METHOD = 4
"""Images for each method and set of attributes or prompt."""
KNOWN_STYLE = "neon"
"""A style that the built-in bases know by name."""
StyleSet = tuple[str, ...]


def figure9(request: ReproductionRequest) -> ReproducedResult:
    """Figure 9, several styles at once: the first pair's content with every set of the first pairs' styles: one adapter
    each, added at strength 1.

    The truth of several styles is one after the other, in the order that is nearest.
    """
    pairs = world_pairs(max(request.pairs, STYLE_COUNT))[:STYLE_COUNT]
    thing, shown = pairs[0].content, {pair.style.style: pair.style for pair in pairs}
    jobs = {(m, ""): request.train_job(thing, "content", m) for m in METHODS_SHOWN}
    jobs |= {(m, name): request.train_job(x, "style", m) for m in METHODS_SHOWN for name, x in shown.items()}
    adapters = request.train_or_load_adapters(jobs)
    sets = [some for count in range(STYLE_COUNT + 1) for some in itertools.combinations(shown, count)]
    truths = {some: true_images_of_orders(thing.content, some) for some in sets}
    true_features = {some: classifier_features(truth) for some, truth in truths.items()}
    lines = [[Cell(f"true: {_style_set_name(x)}", pil_from_tensor(truths[x][:1])[0]) for x in sets]]
    rows: list[TableRow] = []
    for method in METHODS_SHOWN:
        lines.append([])
        for some in sets:
            applied = [(adapters[method, name], 1.0) for name in ("", *some)]
            prompt = FUSED_PROMPT if some else CONTENT_TRAINING_PROMPT
            pictures = generate(request.base_model, prompt, applied, seed=request.seed, count=IMAGES_PER_METHOD)
            seen = [x.content == thing.content for x in classify_images("", pictures).predictions]
            nearest = nearest_style_set(tensor_from_pil(pictures), true_features)
            about = {
                "method": method,
                "attributes": len(some) + 1,
                "styles": _style_set_name(some),
                "pictures": IMAGES_PER_METHOD,
            }
            rows.append({**about, **_mean_scores_of_styles(pictures, seen, [x == some for x in nearest], truths[some])})
            note = f"content {'✓' if seen[0] else '✗'}\n{_style_set_name(nearest[0])}"
            right = seen[0], nearest[0] == some
            lines[-1].append(Cell(f"{method}: {_style_set_name(some)}", pictures[0], note, right))
    notes = (
        f"{thing.content} with the styles of {', '.join(pair.name for pair in pairs)}. Below an image: whether the "
        "content was recognised, and which of the true images in the first row is nearest by the classifiers' "
        "features. On augmented true images that is correct about three times in four. Noise is taken for more "
        "styles, up to all three; ssim, with the true image of the best order, shows such images.",
        "The paper shows images without numbers, and does not name its attributes.",
    )
    return ReproducedResult(f"Figure 9: several attributes at once, {request.base}", rows, notes, ContactSheet(lines))


def _mean_scores_of_styles(
    pictures: Sequence[Image.Image], seen: list[bool], exact: list[bool], truth: Tensor
) -> dict[str, float]:
    """Means over images; ssim with the best of the true images of all orders (orders, 3, 128, 128)."""
    likeness = [ssim(tensor_from_pil(pictures), true.expand(len(pictures), -1, -1, -1)) for true in truth]
    shares = {"thing recognised": statistics.fmean(seen), "these styles and no others": statistics.fmean(exact)}
    return {**shares, "ssim": float(torch.stack(likeness).amax(0).mean())}


def true_images_of_orders(thing: str, styles: StyleSet) -> Tensor:
    """(orders, 3, 128, 128): the true images of a content with all of the styles applied, in every order."""
    pictures = []
    for order in itertools.permutations(styles):
        picture = true_images([thing])
        for name in order:
            picture = ALL_STYLES[name](picture).clamp(0, 1)
        pictures.append(picture)
    return torch.cat(pictures)


def classifier_features(pictures: Tensor) -> list[Tensor]:
    """Features (b, n) of images (b, 3, 128, 128) by each of the classifiers."""
    with torch.no_grad():
        return [classify.features(pictures) for classify in load_classifiers().values()]  # pyright: ignore[reportCallIssue]


def nearest_style_set(pictures: Tensor, true_features: Mapping[StyleSet, list[Tensor]]) -> list[StyleSet]:
    """For each image (b, 3, 128, 128) the set of styles with the nearest true image: the largest sum of the cosines of
    both classifiers' features, over all orders.

    Args:    true_features: of each set, the `classifier_features` of its `true_images_of_orders`.
    """
    features = classifier_features(pictures)
    likeness = [
        torch.stack(
            [F.cosine_similarity(x[:, None], y[None], dim=2).amax(1) for x, y in zip(features, true, strict=True)]
        ).sum(0)
        for true in true_features.values()
    ]
    sets = list(true_features)
    return [sets[k] for k in torch.stack(likeness).argmax(0)]


def figure26(request: ReproductionRequest) -> ReproducedResult:
    """Figure 26, prompt control: the first pair's fusion under prompts that add something, or replace the content or
    the style."""
    pair = request.benchmark_pairs()[0]
    roles = {"content": pair.content, "style": pair.style}
    adapters = request.train_or_load_adapters(
        {(m, r): request.train_job(x, r, m) for m in METHODS_SHOWN for r, x in roles.items()}
    )
    lines, rows = [], []
    for method in METHODS_SHOWN:
        lines.append([Cell(name, Image.open(io.BytesIO(x.file))) for name, x in roles.items()])
        applied = [(adapters[method, role], 1.0) for role in roles]
        for prompt, thing, style in _prompts_with_labels(pair.content.content, pair.style.style):
            told = {"seed": request.seed, "count": IMAGES_PER_METHOD, "check_triggers": False}
            row = classify_images(prompt, generate(request.base_model, prompt, applied, **told), thing, style)
            right = {
                "thing recognised": [x.content == thing for x in row.predictions],
                "style recognised": [x.style == style for x in row.predictions],
                "both": [bool(row.is_correct(x)) for x in row.predictions],
            }
            about = {"method": method, "prompt": prompt, "thing": thing, "style": style, "pictures": IMAGES_PER_METHOD}
            rows.append({**about, **{name: statistics.fmean(x) for name, x in right.items()}})
            first = row.predictions[0]
            lines[-1].append(
                Cell(f"{method}: {prompt}", row.images[0], f"{first.content}\n{first.style}", row.correct_labels(first))
            )
    notes = (
        f"{pair.name}; both adapters at strength 1 for every prompt. Below an image: the classifiers' predictions.",
        "The second and third prompt are the paper's; the built-in bases know contents and styles, but no hats, no "
        "bicycles and no scenes, so only content and style of these prompts are scored.",
        "The paper shows images without numbers.",
    )
    return ReproducedResult(f"Figure 26: other prompts, {request.base}", rows, notes, ContactSheet(lines))


def _prompts_with_labels(thing: str, style: str) -> Sequence[tuple[str, str, str]]:
    """(prompt, true content, true style) for figure 26: as trained, the paper's two additions, and one or both replaced
    by name."""
    return (
        (FUSED_PROMPT, thing, style),
        (caption(f"{CONTENT} wearing a hat", STYLE), thing, style),
        (caption(f"{CONTENT} riding a bicycle", STYLE), thing, style),
        (caption(CONTENT, KNOWN_STYLE), thing, KNOWN_STYLE),
        (caption(OTHER_CONTENT, STYLE), OTHER_CONTENT, style),
        (caption(OTHER_CONTENT, KNOWN_STYLE), OTHER_CONTENT, KNOWN_STYLE),
    )


def _style_set_name(styles: StyleSet) -> str:
    return " + ".join(styles) or "plain"
