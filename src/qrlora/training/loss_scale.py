"""Loss scaling (arXiv 1710.03740): beside a float16 base the loss is multiplied before the backward pass and gradients
are divided after it, since most of them lie below the smallest number that float16 has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class LossScale:
    """A power of two that is halved where gradients overflow, and doubled after 2000 updates in which none did; 1 and
    without any effect but beside a float16 base."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        """Args: device, dtype: of the base, in whose dtype activations and their gradients are."""
        self._scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def backward(self, loss: Tensor) -> None:
        """Gradients of the loss, scaled."""
        self._scaler.scale(loss).backward()

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """An update by gradients that `backward` has left, unless they overflowed: then nothing changes but the scale.

        Returns: whether there was an update; if not, the backward pass is to be done again.
        Raises:  ValueError: gradients overflow at a scale of 1.
        """
        before = self._scaler.get_scale()
        self._scaler.step(optimizer)
        self._scaler.update()
        done = self._scaler.get_scale() >= before
        if not done and before <= 1:
            raise ValueError("gradients leave float16's range at any scale: use dtype=bfloat16 or dtype=float32")
        return done

    def state(self) -> dict[str, Any]:
        """Numbers by name, for a checkpoint; {} where there is no scaling."""
        return self._scaler.state_dict()

    def put_back(self, state: Mapping[str, Any]) -> None:
        """What `state` gave. Raises: KeyError: it is another's."""
        if self._scaler.is_enabled():
            self._scaler.load_state_dict({name: state[name] for name in self.state()})
