"""The two classifiers of the synthetic world: which content is it, whatever the style; which style, whatever it shows.

Two small convolutional networks, trained by `classifier_training` on true pictures alone and apart from every base.
Each can also answer that it is none of what it knows: they are trained on wrong fusions too (the right content in half
a style, in two, in one without a word; blurred and blocky pictures; two contents in one).  How many of those pass all
the same is measured and stands beside their accuracy, see `measured`.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from .drawings import HANDS, PLAIN_HAND, contents
from .styles import ALL_STYLES

CLASSIFIERS = Path(__file__).parent / "classifiers.safetensors"
NONE = "none"
"""The answer to a picture that shows no content, or no style, of the world."""


def style_names() -> tuple[str, ...]:
    """What the judge of styles tells apart: all functional styles, then the hands but the plain one."""
    return (*ALL_STYLES, *(hand for hand in HANDS if hand != PLAIN_HAND))


def _convolution(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


class Classifier(nn.Module):
    """Pictures (b, 3, 128, 128) in 0..1 -> scores (b, classes + 1), the last one's "none"; ``features`` (b, 192)."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 3 * width, 4 * width, 4 * width)
        stages: list[nn.Module] = []
        for k in range(5):
            stages += _convolution(widths[k], widths[k + 1], stride=2)
            if k in (1, 2, 3):
                stages += _convolution(widths[k + 1], widths[k + 1], stride=1)
        self.body = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.neck = nn.Linear(16 * width, 192)
        self.head = nn.Linear(192, classes + 1)

    def features(self, pictures: Tensor) -> Tensor:
        return self.neck(self.body(pictures * 2 - 1))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(F.relu(self.features(pictures)))


@dataclass(frozen=True)
class Classification:
    content: str
    """Its name, or ``none``."""
    style: str
    """The functional style's name, ``plain`` whoever drew it, or ``none``."""
    content_probability: float
    style_probability: float
    hand: str = ""
    """Who drew it, if it is plain: from one drawing that is hard to tell."""


def untrained() -> nn.ModuleDict:
    return nn.ModuleDict({"content": Classifier(len(contents()), 40), "style": Classifier(len(style_names()), 32)})


@cache
def classifiers() -> nn.ModuleDict:
    """Both trained judges, in evaluation mode on the CPU."""
    if not CLASSIFIERS.exists():
        raise FileNotFoundError(
            f"{CLASSIFIERS} is missing; `python -m qrlora.world.classifier_training` trains and writes it"
        )
    both = untrained()
    with safe_open(CLASSIFIERS, "pt") as file:
        both.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return both.float().eval().requires_grad_(False)


@cache
def measured() -> dict[str, dict[str, float]]:
    """What was measured when the judges were trained: "accuracy" on unseen true pictures, and "false_alarms", the share
    of wrong fusions that pass, in all and by kind."""
    with safe_open(CLASSIFIERS, "pt") as file:
        return json.loads(file.metadata()["measured"])


def accuracy_on_unseen() -> dict[str, float]:
    """The judges' accuracy on true pictures of unseen pairs, as measured when they were trained."""
    return measured()["accuracy"]


def style_probabilities(pictures: Tensor) -> Tensor:
    """(b, styles + 1): of each of `ALL_STYLES`, plain standing for every hand, and of none of them."""
    return by_style(classifiers()["style"](pictures))


def by_style(scores: Tensor) -> Tensor:
    """Scores (b, styles + hands + 1) of the judge of styles as probabilities (b, styles + 1), all hands being plain."""
    p, n = scores.softmax(1), len(ALL_STYLES)
    return torch.cat([p[:, :1] + p[:, n:-1].sum(1, keepdim=True), p[:, 1:n], p[:, -1:]], 1)


@torch.no_grad()
def classify(pictures: Tensor, among: tuple[str, ...] | None = None) -> list[Classification]:
    """What the judges see in pictures (b, 3, 128, 128) in 0..1; ``among`` narrows the contents that may be answered."""
    names, styles, hands = (*contents(), NONE), (*ALL_STYLES, NONE), tuple(HANDS)
    scores = classifiers()["content"](pictures)
    if among is not None:
        allowed = torch.tensor([name in {*among, NONE} for name in names])
        scores = scores.masked_fill(~allowed, -torch.inf)
    of_style = classifiers()["style"](pictures)
    by = torch.cat([of_style[:, :1], of_style[:, len(ALL_STYLES) : -1]], 1).argmax(1)
    content, style = scores.softmax(1).max(1), by_style(of_style).max(1)
    return [
        Classification(names[c], styles[s], float(pc), float(ps), hands[h])
        for c, s, h, pc, ps in zip(content.indices, style.indices, by, content.values, style.values, strict=True)
    ]
