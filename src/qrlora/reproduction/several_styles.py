"""Figures 9 and 26: a thing in several styles at once, and what a prompt still says when two adapters are on."""

import io
import itertools
import statistics
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..comparison.figure_data import Cell, ReproducedResult, Sheet
from ..comparison.image_pairs import FUSED_PROMPT, world_pairs
from ..comparison.summary_tables import Row
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
MANNERS = 3
"""Styles that meet in figure 9: with the thing four attributes."""
PICTURES = 4
"""Of each method and set of attributes or prompt, as in a study."""
WORD = "neon"
"""A style that the built-in bases know by its word."""
Manners = tuple[str, ...]


def figure9(request: ReproductionRequest) -> ReproducedResult:
    """The first pair's thing with every set of the first pairs' styles: one adapter each, added at strength 1.

    The truth of several styles is one after the other, in the order that is nearest.
    """
    pairs = world_pairs(max(request.pairs, MANNERS))[:MANNERS]
    thing, shown = pairs[0].content, {pair.style.style: pair.style for pair in pairs}
    jobs = {(m, ""): request.lesson(thing, "content", m) for m in METHODS_SHOWN}
    jobs |= {(m, name): request.lesson(x, "style", m) for m in METHODS_SHOWN for name, x in shown.items()}
    learnt = request.learnt(jobs)
    sets = [some for count in range(MANNERS + 1) for some in itertools.combinations(shown, count)]
    truths = {some: true_orders(thing.content, some) for some in sets}
    lines = [[Cell(f"true: {_words(x)}", pil_from_tensor(truths[x][:1])[0]) for x in sets]]
    rows: list[Row] = []
    for method in METHODS_SHOWN:
        lines.append([])
        for some in sets:
            applied = [(learnt[method, name], 1.0) for name in ("", *some)]
            prompt = FUSED_PROMPT if some else CONTENT_TRAINING_PROMPT
            pictures = generate(request.opened, prompt, applied, seed=request.seed, count=PICTURES)
            seen = [x.content == thing.content for x in classify_images("", pictures).predictions]
            nearest = nearest_truth(tensor_from_pil(pictures), truths)
            about = {"method": method, "attributes": len(some) + 1, "styles": _words(some), "pictures": PICTURES}
            rows.append({**about, **_scores(pictures, seen, [x == some for x in nearest], truths[some])})
            note = f"{'thing, ' * seen[0]}{_words(nearest[0])}"
            lines[-1].append(Cell(f"{method}: {_words(some)}", pictures[0], note, seen[0] and nearest[0] == some))
    notes = (
        f"{thing.content} with the styles of {', '.join(pair.name for pair in pairs)}. Beneath a picture: whether the "
        "thing was recognised, and which of the true pictures in the first line is nearest by the judges' features. "
        "On true pictures that were moved, blurred and made noisy that is right about three times in four. Noise "
        "is taken for more styles, up to all three; ssim, with the truth of the best order, tells such pictures.",
        "The paper shows pictures without numbers, and does not name its attributes.",
    )
    return ReproducedResult(f"Figure 9: several attributes at once, {request.base}", rows, notes, Sheet(lines))


def _scores(pictures: Sequence[Image.Image], seen: list[bool], exact: list[bool], truth: Tensor) -> dict[str, float]:
    """Means over pictures; ssim with the best of the truth's orders (orders, 3, 128, 128)."""
    likeness = [ssim(tensor_from_pil(pictures), true.expand(len(pictures), -1, -1, -1)) for true in truth]
    shares = {"thing recognised": statistics.fmean(seen), "these styles and no others": statistics.fmean(exact)}
    return {**shares, "ssim": float(torch.stack(likeness).amax(0).mean())}


def true_orders(thing: str, manners: Manners) -> Tensor:
    """(orders, 3, 128, 128): the thing in all of the styles, one after the other, in every order."""
    pictures = []
    for order in itertools.permutations(manners):
        picture = true_images([thing])
        for name in order:
            picture = ALL_STYLES[name](picture).clamp(0, 1)
        pictures.append(picture)
    return torch.cat(pictures)


@torch.no_grad()
def nearest_truth(pictures: Tensor, truths: Mapping[Manners, Tensor]) -> list[Manners]:
    """For each picture (b, 3, 128, 128) the set of styles whose truth is nearest: the largest sum of the cosines of
    both judges' features, of the best order."""
    likeness = torch.zeros(len(pictures), len(truths))
    for classify in load_classifiers().values():
        features = classify.features(pictures)[:, None]  # pyright: ignore[reportCallIssue]
        for k, truth in enumerate(truths.values()):
            true = classify.features(truth)[None]  # pyright: ignore[reportCallIssue]
            likeness[:, k] += F.cosine_similarity(features, true, dim=2).amax(1)
    sets = list(truths)
    return [sets[k] for k in likeness.argmax(1)]


def figure26(request: ReproductionRequest) -> ReproducedResult:
    """The first pair's fusion under prompts that ask for something else as well, or instead."""
    pair = request.world()[0]
    roles = {"content": pair.content, "style": pair.style}
    learnt = request.learnt({(m, r): request.lesson(x, r, m) for m in METHODS_SHOWN for r, x in roles.items()})
    lines, rows = [], []
    for method in METHODS_SHOWN:
        lines.append([Cell(name, Image.open(io.BytesIO(x.picture))) for name, x in roles.items()])
        applied = [(learnt[method, role], 1.0) for role in roles]
        for prompt, thing, manner in _scenes(pair.content.content, pair.style.style):
            told = {"seed": request.seed, "count": PICTURES, "check_triggers": False}
            row = classify_images(prompt, generate(request.opened, prompt, applied, **told), thing, manner)
            right = {
                "thing recognised": [x.content == thing for x in row.predictions],
                "style recognised": [x.style == manner for x in row.predictions],
                "both": [bool(row.is_correct(x)) for x in row.predictions],
            }
            about = {"method": method, "prompt": prompt, "thing": thing, "style": manner, "pictures": PICTURES}
            rows.append({**about, **{name: statistics.fmean(x) for name, x in right.items()}})
            first = row.predictions[0]
            lines[-1].append(
                Cell(f"{method}: {prompt}", row.images[0], f"{first.content}, {first.style}", right["both"][0])
            )
    notes = (
        f"{pair.name}; both adapters at strength 1 whatever the prompt says. Beneath a picture: what the judges see.",
        "The second and third prompt are the paper's; the built-in bases know things and styles, but no hats, no "
        "bicycles and no scenes, so of these prompts only the thing and the style are judged.",
        "The paper shows pictures without numbers.",
    )
    return ReproducedResult(f"Figure 26: other prompts, {request.base}", rows, notes, Sheet(lines))


def _scenes(thing: str, manner: str) -> Sequence[tuple[str, str, str]]:
    """(prompt, thing, style that should be seen): as learnt, the paper's two additions, and one or both by words."""
    return (
        (FUSED_PROMPT, thing, manner),
        (caption(f"{CONTENT} wearing a hat", STYLE), thing, manner),
        (caption(f"{CONTENT} riding a bicycle", STYLE), thing, manner),
        (caption(CONTENT, WORD), thing, WORD),
        (caption(OTHER_CONTENT, STYLE), OTHER_CONTENT, manner),
        (caption(OTHER_CONTENT, WORD), OTHER_CONTENT, WORD),
    )


def _words(manners: Manners) -> str:
    return " + ".join(manners) or "plain"
