"""The content classifier and the style classifier of the synthetic benchmark, which score generated images.

Two small convolutional networks, trained by `classifier_training` on true images alone, independently of every base.
Each has a class "none": they are also trained on wrong fusions (the right content in half a style, in two styles, in an
unnamed style; blurred and blocky images; two contents in one).  `measured_quality` gives their accuracy and the
fraction of wrong fusions that they accept.
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

CLASSIFIER_FILE = Path(__file__).parent / "classifiers.safetensors"
NONE = "none"
"""The class of an image that shows no content, or no style, of the benchmark."""


def style_class_names() -> tuple[str, ...]:
    """The style classifier's classes but "none": all functional styles, then all hands but the plain one."""
    return (*ALL_STYLES, *(hand for hand in HANDS if hand != PLAIN_HAND))


def _conv_norm_relu(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


class Classifier(nn.Module):
    """Images (b, 3, 128, 128) in 0..1 -> logits (b, classes + 1), "none" last; ``features`` gives (b, 192)."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 3 * width, 4 * width, 4 * width)
        stages: list[nn.Module] = []
        for k in range(5):
            stages += _conv_norm_relu(widths[k], widths[k + 1], stride=2)
            if k in (1, 2, 3):
                stages += _conv_norm_relu(widths[k + 1], widths[k + 1], stride=1)
        self.body = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.neck = nn.Linear(16 * width, 192)
        self.head = nn.Linear(192, classes + 1)

    def features(self, images: Tensor) -> Tensor:
        return self.neck(self.body(images * 2 - 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(F.relu(self.features(images)))


@dataclass(frozen=True)
class Classification:
    """Both classifiers' prediction for one image."""

    content: str
    """Its name, or ``none``."""
    style: str
    """The functional style's name, ``plain`` whoever drew it, or ``none``."""
    content_probability: float
    style_probability: float
    hand: str = ""
    """The most likely hand, if the style is plain: uncertain from one drawing."""


def untrained_classifiers() -> nn.ModuleDict:
    """Both classifiers, initialised from torch's global generator."""
    return nn.ModuleDict(
        {"content": Classifier(len(contents()), 40), "style": Classifier(len(style_class_names()), 32)}
    )


@cache
def load_classifiers() -> nn.ModuleDict:
    """Both trained classifiers, in evaluation mode on the CPU."""
    if not CLASSIFIER_FILE.exists():
        raise FileNotFoundError(
            f"{CLASSIFIER_FILE} is missing; `python -m qrlora.world.classifier_training` trains and writes it"
        )
    models = untrained_classifiers()
    with safe_open(CLASSIFIER_FILE, "pt") as file:
        models.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return models.float().eval().requires_grad_(False)


@cache
def measured_quality() -> dict[str, dict[str, float]]:
    """Measured after the classifiers' training: "accuracy" on true images of held-out pairs, and "false_alarms", the
    fraction of wrong fusions that are accepted, over all and by kind."""
    with safe_open(CLASSIFIER_FILE, "pt") as file:
        return json.loads(file.metadata()["measured"])


def classifier_accuracy() -> dict[str, float]:
    """The classifiers' accuracy on true images of held-out pairs, as measured after their training."""
    return measured_quality()["accuracy"]


def probabilities_by_style(logits: Tensor) -> Tensor:
    """Style logits (b, styles + hands + 1) as probabilities (b, styles + 1): every hand counts as the plain style."""
    p, n = logits.softmax(1), len(ALL_STYLES)
    return torch.cat([p[:, :1] + p[:, n:-1].sum(1, keepdim=True), p[:, 1:n], p[:, -1:]], 1)


@torch.no_grad()
def classify(images: Tensor, among: tuple[str, ...] | None = None) -> list[Classification]:
    """The classifiers' predictions for images (b, 3, 128, 128) in 0..1. Args: among: allowed contents; None: all."""
    names, styles, hands = (*contents(), NONE), (*ALL_STYLES, NONE), tuple(HANDS)
    content_logits = load_classifiers()["content"](images)
    if among is not None:
        allowed = torch.tensor([name in {*among, NONE} for name in names])
        content_logits = content_logits.masked_fill(~allowed, -torch.inf)
    style_logits = load_classifiers()["style"](images)
    hand = torch.cat([style_logits[:, :1], style_logits[:, len(ALL_STYLES) : -1]], 1).argmax(1)
    content, style = content_logits.softmax(1).max(1), probabilities_by_style(style_logits).max(1)
    return [
        Classification(names[c], styles[s], float(pc), float(ps), hands[h])
        for c, s, h, pc, ps in zip(content.indices, style.indices, hand, content.values, style.values, strict=True)
    ]
