"""How much memory a training step takes, counted by running it where tensors have shapes and no bytes.

The real model, adapter, loss and optimizer run on the meta device, and every storage that appears is counted until it
is gone. What a device adds is not in the count: its context, the allocator's gaps, libraries' work space.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ..attach import begin
from ..families import Base
from ..families.blank import blank_example
from ..methods import METHODS, Start
from ..noise import Noising
from ..training import denoising_loss
from ..training.loop import NAME, OPTIMIZERS, recomputing

FLASH = 1
"""SDPBackend.FLASH_ATTENTION: no n x n matrix is kept. The meta device alone would choose the plain product."""

# A time is drawn on the CPU, so the meta device has no values to look up: of the same shapes, without a table.
SHAPES_ONLY = Noising(
    name="shapes only",
    sample_time=lambda b, generator: torch.ones(b),
    add_noise=lambda x, noise, time: x + noise,
    target=lambda x, noise, time: noise - x,
    weighting=torch.ones_like,
)


class Live(TorchDispatchMode):
    """Bytes of the storages that operations have made and that still live: `now`, and the most there were: `peak`."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        """Storages of the tensors `known` are not counted."""
        super().__init__()
        self.now = self.peak = 0
        self._known = [x.untyped_storage() for x in known]  # held, so that no other gets their ids
        self._seen: dict[int, Any] = {id(x): None for x in self._known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._fused_sdp_choice.default and args[0].is_meta:
            return FLASH
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self._note(value.untyped_storage())
        return result

    def _note(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._seen:
            return

        def gone(_: Any) -> None:
            del self._seen[key]
            self.now -= size

        self._seen[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def start_on(base: Base, targets: str, method: str, rank: int) -> list[nn.Parameter]:
    """A method's start on a base that is on the meta device; the factors that learn."""
    return begin(base.model, {n: _start(w, method, rank) for n, w in base.weights(targets)}, NAME)


def _start(weight: Tensor, method: str, rank: int) -> Start:
    o, i = weight.shape
    row = METHODS[method]
    Q = torch.empty({"input": i, "output": o}[row.side], rank) if row.side else None
    start = row.start(torch.empty(o, i) if row.side and not row.frozen else weight, Q, rank, None)
    mask = None if start.mask is None else start.mask.to("meta")
    return Start(start.A.to("meta"), start.B.to("meta"), start.learns, mask, start.subtract_start)


def step_bytes(base: Base, parameters: list[nn.Parameter], words: int, settings: Mapping[str, Any]) -> int:
    """Most bytes alive at once in an update beyond model and adapter: activations, gradients, Adam's two moments.

    Args:   base: on the meta device, with a start on it whose learning factors are `parameters`.
            settings: resolution, batch_size, gradient_checkpointing.
    """
    side = settings["resolution"]
    clean, condition = blank_example(base, side, words, settings["batch_size"], "meta")
    known = [*base.model.parameters(), *base.model.buffers(), clean, *condition.tensors.values()]
    optimizer = OPTIMIZERS["adam"](parameters, lr=1e-4)
    with recomputing(base.model, settings["gradient_checkpointing"]), torch.device("meta"), Live(known) as live:
        for parameter in parameters:  # an update of nothing: from the second on, the moments are there
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        noise, time = torch.empty_like(clean), torch.empty(len(clean))
        loss = denoising_loss(base.family.predict, base.model, SHAPES_ONLY, clean, noise, time, condition)
        loss.backward()
        del loss
        optimizer.step()
        optimizer.zero_grad()
    return live.peak
