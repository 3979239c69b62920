"""Whether an image is nearer to its true image than to every wrong one: exact, strict, and learnt from nothing.

The second measure beside the `classifiers`, and independent of them: a style is a function, so not only the true image
of a content in a style is known but also what a wrong fusion would look like.  `qrlora reproduce measures` prints how
many true images and how many wrong fusions of each kind both measures accept.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .drawings import HANDS, PLAIN_HAND, SIZE, contents, contents_drawn_by
from .ground_truth import true_images
from .styles import ALL_STYLES

SIDE = 32
"""Images are compared as so many by so many mean colours: no finer than what a base draws sharply."""


def nearest_truth_margin(images: Tensor, content: str, style: str) -> Tensor:
    """How much nearer images are to the true image than to the nearest wrong one.

    Wrong are: every other content in the style, the content in every other style, the mean of the true image with
    each of these (so also half the style, whose mean is with plain), and the true image blurred or blocky beyond
    recognition.  Distances are root mean squares over mean colours: a content drawn elsewhere or turned is wrong, too.
    If the style is a hand, the other contents are those that it drew, and the content by every other hand is wrong.

    Args:    images (b, 3, 128, 128) in 0..1.  content: a name of `drawings.contents`.  style: a name of
             `styles.ALL_STYLES`, or of `drawings.HANDS`, which drew the content.
    Returns: (b,) distance to the nearest wrong image less that to the true one, -1..1: above 0 for a right image.
    """
    by_hand = style in HANDS
    one, many = _contents_in(style).index(content), _styles_of(content, by_hand).index(style)
    by_content, by_style = mean_colours_of_contents(style), mean_colours_in_styles(content, by_hand)
    true = by_content[one : one + 1]
    other = torch.cat([_without(by_content, one), _without(by_style, many)])
    wrong = torch.cat([other, (other + true) / 2, mean_colours(beyond_recognition(true_images([content], style)))])
    found = mean_colours(images)
    return (colour_distances(found, wrong).amin(1) - colour_distances(found, true)[:, 0]) / found.shape[1] ** 0.5


def colour_distances(first: Tensor, second: Tensor) -> Tensor:
    """Euclidean, (m, d) and (n, d) -> (m, n), without the rounding of products: 0 for equal rows."""
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")


def mean_colours(images: Tensor) -> Tensor:
    """(b, 3, h, w) -> (b, 3 SIDE^2)."""
    return F.adaptive_avg_pool2d(images, SIDE).flatten(1)


def _without(rows: Tensor, index: int) -> Tensor:
    return torch.cat([rows[:index], rows[index + 1 :]])


def beyond_recognition(image: Tensor) -> Tensor:
    """An image (1, 3, 128, 128), blurred and blocky: (2, 3, 128, 128)."""
    small = F.interpolate(image, size=5, mode="area")
    return torch.cat([F.interpolate(small, size=SIZE, mode=mode) for mode in ("bilinear", "nearest")])


def _contents_in(style: str) -> tuple[str, ...]:
    """The contents whose image in a style, or by a hand, is known."""
    return contents_drawn_by(style) if style in HANDS else contents()


def _styles_of(content: str, hands: bool) -> tuple[str, ...]:
    """The styles in which a content's image is known, with or without the hands that drew it ("plain": the first)."""
    drawn = (hand for hand in HANDS if hand != PLAIN_HAND and content in contents_drawn_by(hand))
    return (*ALL_STYLES, *(drawn if hands else ()))


@cache
def mean_colours_of_contents(style: str) -> Tensor:
    """Of every content in a style."""
    names, few = _contents_in(style), 46
    groups = [names[k : k + few] for k in range(0, len(names), few)]
    return torch.cat([mean_colours(true_images(group, style)) for group in groups])


@cache
def mean_colours_in_styles(content: str, hands: bool) -> Tensor:
    """Of a content in every style, and by every hand if these are asked for."""
    return torch.cat([mean_colours(true_images([content], style)) for style in _styles_of(content, hands)])
