"""Which content an image shows, by the features of a network that has never seen the benchmark: a second opinion.

A content is named by the nearest mean of the features of its drawings by several hands.  With EfficientNet-Lite0
(`packaged_encoders`), which was trained on photographs, 39 of 100 true images in a style are named right among 460, and
70 have their content among the nearest 23.  Grey images, their negatives and features less each hand's mean did no
better (35 to 41), so none of it is done.  Hands and styles such features cannot tell apart.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .drawings import HANDS, PLAIN_HAND, contents, contents_drawn_by, load_drawings

SIDE = 160
"""Images are enlarged to so many pixels a side: half the time of the 224 that EfficientNet-Lite0 was trained at."""


@torch.no_grad()
def unit_features(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """A network's features of images (b, 3, h, w) in 0..1: (b, d), of unit length."""
    rows = []
    for batch in images.split(16):
        enlarged = F.interpolate(batch, size=(SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False)
        rows.append(F.normalize(network(enlarged.clamp(0, 1)), dim=1))
    return torch.cat(rows)


def mean_features(network: Callable[[Tensor], Tensor], leave_out: str = PLAIN_HAND) -> Tensor:
    """The mean features of each content's drawings by all hands but the one that is judged: (460, d), unit length.

    Takes two minutes on a CPU.
    """
    total, names = None, contents()
    for hand in (hand for hand in HANDS if hand != leave_out):
        drawn = contents_drawn_by(hand)
        found = unit_features(network, load_drawings(drawn, hand))
        total = torch.zeros(len(names), found.shape[1]) if total is None else total
        total[[names.index(name) for name in drawn]] += found
    assert total is not None
    return F.normalize(total, dim=1)


def rank_of_content(features: Tensor, means: Tensor, content: str) -> Tensor:
    """How many of the contents are nearer to an image than its own: (b, d) -> (b,), 0 for an image named right."""
    likeness = features @ means.T
    own = contents().index(content)
    return (likeness > likeness[:, own : own + 1]).sum(1)
