"""How far what an adapter learnt comes out in a drawing, on a scale that the base's own known words set.

Likenesses to a content's and to a style's picture, by two networks, cannot be compared as they stand. So the base draws
without adapters, too: things that it knows in styles that it knows, each thing in several styles and each style on
several things. Of a role, with the cosine s of a network's features:

    score = (s(drawing, picture) - f) / (k - f), within 0..1

f is the mean s of the base's drawings with the adapter's picture: 0 is what any other word gives. k is the mean s of
two of these drawings that share a word of the role: 1 is how alike the base draws a word that it knows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from statistics import fmean, pstdev
from typing import Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..evaluation import Encoder
from ..world.classifiers import load_classifiers
from ..world.image_tensors import tensor_from_pil

ROLES: tuple[Literal["content"], Literal["style"]] = ("content", "style")
Judge = Callable[[Sequence[Image.Image]], Tensor]
"""Images -> (b, features), of unit length, whose cosine is a likeness in content or in style."""


def known_word_pairs(contents: Sequence[str], styles: Sequence[str]) -> list[tuple[str, str]]:
    """(content, style) of the drawings that set the scale, of two contents or more and two styles or more: each with at
    least two of the other role. The first are one for each word."""
    if len(styles) > len(contents):
        return [(content, style) for style, content in known_word_pairs(styles, contents)]
    return [(content, styles[(k + shift) % len(styles)]) for shift in (0, 1) for k, content in enumerate(contents)]


@dataclass(frozen=True)
class KnownWordScale:
    """The scale of one judge in one role."""

    judge: Judge
    drawings: Tensor
    """(n, features) of the base's drawings of known words without adapters."""
    likeness: float
    """k: the mean likeness of two of them that share a word of the role."""
    spread: float
    """The standard deviation of the known words' own scores, each word's drawings taken as picture and drawing: it is
    large if the judge does not see the role; 1 if to it drawings of different words are as alike as those of one."""

    def scores(self, images: Sequence[Image.Image], picture: Image.Image) -> list[float]:
        """How far each image shows what the picture shows in this role, 0..1."""
        wanted = self.judge([picture])[0]
        other = float((self.drawings @ wanted).mean())
        return [_score(x, other, self.likeness) for x in (self.judge(images) @ wanted).tolist()]


def known_word_scale(
    judge: Judge, role: str, pairs: Sequence[tuple[str, str]], images: Sequence[Image.Image]
) -> KnownWordScale:
    """The scale that the base's drawings of known words set. Args: pairs: `known_word_pairs`.  images: one of each."""
    drawings = judge(images)
    cosines = (drawings @ drawings.T).tolist()
    own, other = ([pair[place] for pair in pairs] for place in ((0, 1) if role == "content" else (1, 0)))
    same, different = [], []
    for word in dict.fromkeys(own):
        of_word = [k for k, x in enumerate(own) if x == word]
        same.append(fmean(cosines[k][m] for k, m in combinations(of_word, 2)))
        apart = [(k, m) for k in of_word for m in range(len(own)) if own[m] != word and other[m] != other[k]]
        different.append(fmean(cosines[k][m] for k, m in apart))
    likeness = fmean(same)
    own_scores = [_score(x, y, likeness) for x, y in zip(same, different, strict=True)]
    spread = pstdev(own_scores) if likeness > fmean(different) else 1.0
    return KnownWordScale(judge, drawings, likeness, spread)


def known_word_scales(
    judges: Mapping[str, Judge], pairs: Sequence[tuple[str, str]], images: Sequence[Image.Image]
) -> dict[str, KnownWordScale]:
    """`known_word_scale` of both roles."""
    return {role: known_word_scale(judge, role, pairs, images) for role, judge in judges.items()}


def classifiers_as_judges() -> dict[str, Judge]:
    """The synthetic benchmark's classifiers, by their features: they see its drawings alone."""
    return {role: partial(_classifier_features, role) for role in ROLES}


def encoders_as_judges(encoders: Sequence[Encoder]) -> dict[str, Judge]:
    """The first vision encoder judges the content, the last the style; those that measure a distance place by place, in
    which a thing elsewhere is another thing, judge neither. Raises: ValueError: none is left."""
    features = [x.features for x in encoders if not x.distance]
    if not features:
        names = ", ".join(x.name for x in encoders)
        raise ValueError(f"{names} compares place by place and judges neither content nor style: give other encoders")
    return {"content": features[0], "style": features[-1]}


@torch.no_grad()
def _classifier_features(role: str, images: Sequence[Image.Image]) -> Tensor:
    features = load_classifiers()[role].features(tensor_from_pil(images))  # pyright: ignore[reportCallIssue]
    return F.normalize(features, dim=1)


def _score(likeness: float, other: float, same: float) -> float:
    """A likeness on the scale from `other` to `same`, within 0..1; 0 where these are the wrong way round."""
    return min(max((likeness - other) / (same - other), 0.0), 1.0) if same > other else 0.0
