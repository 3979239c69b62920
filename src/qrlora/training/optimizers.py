"""OPTIMIZERS by name, and the learning rate schedule. Optimizer state is float32, except adam8bit's. [bitsandbytes]"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .. import optional_dependencies

LIBRARIES = {"adam8bit": "bitsandbytes", "prodigy": "prodigyopt"}
"""Optimizer -> the library that it needs; the others are torch's."""


def adam(parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """The paper's (arXiv 1412.6980)."""
    return torch.optim.Adam(parameters, lr=rate, fused=_use_fused_kernel(parameters))


def adamw(parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """Adam with weight decay 1e-2 beside the gradient (arXiv 1711.05101)."""
    return torch.optim.AdamW(parameters, lr=rate, fused=_use_fused_kernel(parameters))


def adam8bit(parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """The optimizer Adam whose two moments are kept in 8 bits, in blocks (arXiv 2110.02861)."""
    import bitsandbytes  # pyright: ignore[reportMissingImports]

    return bitsandbytes.optim.Adam8bit(parameters, lr=rate)


def prodigy(parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """The optimizer Prodigy: Adam with an estimated learning rate, multiplied by `rate` (arXiv 2306.06101); settings as
    in diffusers' scripts.

    The estimate grows from 1e-6, so that the first tens of updates hardly move.
    """
    from prodigyopt import Prodigy

    return Prodigy(parameters, lr=rate, use_bias_correction=True, safeguard_warmup=True)


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter], float], torch.optim.Optimizer]] = {
    "adam": adam,
    "adamw": adamw,
    "adam8bit": adam8bit,
    "prodigy": prodigy,
}
"""Name -> (trainable parameters, learning rate) -> optimizer."""


def linear_decay(step: int, steps: int, lr_decay: float) -> float:
    """Multiplier of the optimizer's learning rate in update 1..steps: 1, then linear to zero over the last `lr_decay *
    steps`.

    At a constant rate, Adam's last steps leave noise of their own length in the factors; the decay removes it.
    """
    return min(1.0, (steps - step + 1) / max(1.0, lr_decay * steps))


def check_optimizer(name: str, device: torch.device) -> None:
    """Raises ValueError, with a hint: the optimizer's library is not installed, or it needs a GPU."""
    if name == "adam8bit" and device.type != "cuda":
        raise ValueError(f"optimizer=adam8bit needs a GPU with CUDA, the device is {device}: use optimizer=adam")
    if library := LIBRARIES.get(name):
        optional_dependencies.require("optimizers", library, reason=f"optimizer={name}")


def _use_fused_kernel(parameters: list[nn.Parameter]) -> bool:
    """Whether torch has a fused optimizer kernel there: one for hundreds of small matrices instead of ten for each."""
    return parameters[0].device.type in ("cpu", "cuda")
