"""Whether an image has a content, a style and a frame, each told by the nearest of true images that differ in it."""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from .drawings import SIZE, contents
from .frames import FRAMES, UNFRAMED, framed_images
from .nearest_truth import colour_distances, mean_colours, mean_colours_of_contents
from .styles import ALL_STYLES


class Look(NamedTuple):
    """What is done to a content's drawing."""

    style: str
    frame: str
    beneath: bool
    """Whether the frame is beneath the style, and not over it."""


OVER = [Look(style, frame, False) for frame in FRAMES for style in ALL_STYLES]
LOOKS = OVER + [Look(style, frame, True) for style, frame, _ in OVER if frame != UNFRAMED]


def attributes_right(images: Tensor, content: str, style: str, frame: str) -> dict[str, Tensor]:
    """Which attributes of images are right: exact, and learnt from nothing, as `nearest_truth`.

    An image's style and frame are those of the nearest among the content's true images in all LOOKS; its content is
    right if no other content's true image in that look is nearer.  So an image that is wrong in one is told to be right
    in the others.  Distances are root mean squares over 32 x 32 mean colours.

    Args:    images (b, 3, 128, 128) in 0..1.  content, style, frame: of `drawings.contents`, `styles.ALL_STYLES` and
             `FRAMES`.
    Returns: {"content", "style", "frame", "all": (b,) booleans}.
    """
    found = mean_colours(images)
    looks = [LOOKS[k] for k in colour_distances(found, _mean_colours_in_looks(content)).argmin(1)]
    right = torch.tensor(
        [
            [
                int(colour_distances(colours[None], _mean_colours_in_look(look)).argmin()) == contents().index(content),
                look.style == style,
                look.frame == frame,
            ]
            for colours, look in zip(found, looks, strict=True)
        ]
    )
    return {**dict(zip(("content", "style", "frame"), right.T, strict=True)), "all": right.all(1)}


@cache
def _mean_colours_in_looks(content: str) -> Tensor:
    """Of a content in every look."""
    return torch.cat([mean_colours(framed_images([content], *look)) for look in LOOKS])


@cache
def _mean_colours_in_look(look: Look) -> Tensor:
    """Of every content in a look."""
    names, few = contents(), 46
    if look.beneath:
        groups = [names[k : k + few] for k in range(0, len(names), few)]
        return torch.cat([mean_colours(framed_images(group, *look)) for group in groups])
    # a frame is as wide as three of the squares whose mean is taken, and there the same whatever it covers
    white, black = (mean_colours(FRAMES[look.frame](torch.full((1, 3, SIZE, SIZE), x))) for x in (1.0, 0.0))
    return torch.where(white == black, white, mean_colours_of_contents(look.style))
