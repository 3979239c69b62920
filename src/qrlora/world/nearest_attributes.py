"""Whether an image has a content, a style and a frame, each told by the nearest of true images that differ in it."""

import torch
from torch import Tensor

from .drawings import SIZE, contents
from .frames import FRAMES
from .nearest_truth import colour_distances, mean_colours, mean_colours_in_styles, mean_colours_of_contents
from .styles import ALL_STYLES


def attributes_right(images: Tensor, content: str, style: str, frame: str) -> dict[str, Tensor]:
    """Which attributes of images are right: exact, and learnt from nothing, as `nearest_truth`.

    An image's style and frame are those of the nearest among the content's true images in all styles and frames; its
    content is right if, in that style and frame, the true image of no other content is nearer.  So an image that is
    wrong in one is told to be right in the others.  Distances are root mean squares over 32 x 32 mean colours.

    Args:    images (b, 3, 128, 128) in 0..1.  content, style, frame: of `drawings.contents`, `styles.ALL_STYLES` and
             `FRAMES`.
    Returns: {"content", "style", "frame", "all": (b,) booleans}.
    Raises:  ValueError, KeyError: no such name.
    """
    found, in_styles = mean_colours(images), mean_colours_in_styles(content, hands=False)
    looks = [(x, y) for y in FRAMES for x in ALL_STYLES]
    in_looks = torch.cat([_in_frame(in_styles, name) for name in FRAMES])
    nearest = [looks[k] for k in colour_distances(found, in_looks).argmin(1)]
    right = {"content": [], "style": [x == style for x, _ in nearest], "frame": [y == frame for _, y in nearest]}
    for colours, (in_style, in_frame) in zip(found, nearest, strict=True):
        of_contents = _in_frame(mean_colours_of_contents(in_style), in_frame)
        k = int(colour_distances(colours[None], of_contents).argmin())
        right["content"].append(contents()[k] == content)
    told = {name: torch.tensor(x) for name, x in right.items()}
    return {**told, "all": told["content"] & told["style"] & told["frame"]}


def _in_frame(colours: Tensor, frame: str) -> Tensor:
    """The mean colours of framed images from those of the images without a frame: (b, n) -> (b, n).

    A frame is as wide as three of the squares whose mean is taken, and there the same whatever it covers.
    """
    white, black = (mean_colours(FRAMES[frame](torch.full((1, 3, SIZE, SIZE), x))) for x in (1.0, 0.0))
    return torch.where(white == black, white, colours)
