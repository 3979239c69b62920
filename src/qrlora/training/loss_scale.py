"""Loss scaling (arXiv 1710.03740): beside a float16 base the loss is multiplied before the backward pass and gradients
are divided after it, since most of them lie below the smallest number in float16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class LossScale:
    """A dynamic loss scale: a power of two, halved when gradients overflow, doubled after 2000 updates without. Unless
    the base is in float16 it is 1, without effect."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        """Args: device, dtype: of the base, which are those of activations and their gradients."""
        self._scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def backward(self, loss: Tensor) -> None:
        """Backward pass of the scaled loss."""
        self._scaler.scale(loss).backward()

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Unscale the scaled loss's gradients and update; if they overflowed, only the scale changes.

        Returns: whether there was an update; if not, the backward pass is to be repeated.
        Raises:  ValueError: gradients overflow at a scale of 1.
        """
        before = self._scaler.get_scale()
        self._scaler.step(optimizer)
        self._scaler.update()
        done = self._scaler.get_scale() >= before
        if not done and before <= 1:
            raise ValueError("gradients leave float16's range at any scale: use dtype=bfloat16 or dtype=float32")
        return done

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint; {} without scaling."""
        return self._scaler.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned. Raises: KeyError: an entry is missing."""
        if self._scaler.is_enabled():
            self._scaler.load_state_dict({name: state_dict[name] for name in self.state_dict()})
