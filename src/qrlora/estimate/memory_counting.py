"""How much memory a training step takes, counted by running it where tensors have shapes and no bytes.

The real model, adapter, loss and optimizer run on the meta device, and every storage that appears is counted until it
is gone. What a device adds is not in the count: its context, the allocator's gaps, libraries' work space.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ..initialisation_methods import METHODS, InitialFactors
from ..injection import initialise
from ..noising import Noising
from ..training import denoising_loss
from ..training.optimizers import OPTIMIZERS
from ..training.trainable_adapter import ADAPTER_NAME
from ..training.training_loop import gradient_checkpointing
from .training_task import TrainingTask

# A time is drawn on the CPU, so the meta device has no values to look up: of the same shapes, without a table.
SHAPES_ONLY = Noising(
    name="shapes only",
    sample_time=lambda b, generator: torch.ones(b),
    add_noise=lambda x, noise, time: x + noise,
    target=lambda x, noise, time: noise - x,
    weighting=torch.ones_like,
)


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that operations have made and that still live: `now`, and the most there were: `peak`."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        """Storages of the tensors `known` are not counted."""
        super().__init__()
        self.now = self.peak = 0
        self._known = [x.untyped_storage() for x in known]  # held, so that no other gets their ids
        self._seen: dict[int, Any] = {id(x): None for x in self._known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count the storages of every operation's results."""
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        """Count a storage's bytes until it is freed."""
        key, size = id(storage), storage.nbytes()
        if key in self._seen:
            return

        def on_freed(_: Any) -> None:
            """A storage that was counted is freed."""
            del self._seen[key]
            self.now -= size

        self._seen[key] = weakref.ref(storage, on_freed)
        self.now += size
        self.peak = max(self.peak, self.now)


ATTENTION = nn.functional.scaled_dot_product_attention


@contextlib.contextmanager
def flash_attention() -> Iterator[None]:
    """For counting memory: attention of tensors on the meta device by the kernel that a CPU runs: no n x n matrix is
    kept, but the inputs, the answer and one float32 per query (arXiv 2205.14135). The meta device alone would take the
    plain product."""
    nn.functional.scaled_dot_product_attention = attend  # a TorchFunctionMode would be off while a backward recomputes
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = ATTENTION


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """For counting memory: torch.nn.functional.scaled_dot_product_attention; see flash_attention."""
    if not query.is_meta or enable_gqa:
        return ATTENTION(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = attn_mask.to(query.dtype)  # as torch makes of it what is added
    return cpu_flash_attention()(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


def cpu_flash_attention() -> Any:
    """The operator by which torch computes attention on a CPU; its name is torch's own affair
    (tests/test_library_internals.py)."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def initialise_on_meta(task: TrainingTask) -> list[nn.Parameter]:
    """Initialise a method's LoRA factors on a base that is on the meta device; returns the trainable ones."""
    starts = {n: _meta_factors(w, task.config.method, task.rank) for n, w in task.base.weights(task.targets)}
    return initialise(task.base.model, starts, ADAPTER_NAME)


def _meta_factors(weight: Tensor, method: str, rank: int) -> InitialFactors:
    """A method's factors A and B on the meta device: shapes without bytes."""
    o, i = weight.shape
    row = METHODS[method]
    Q = torch.empty({"input": i, "output": o}[row.side], rank) if row.side else None
    start = row.start(torch.empty(o, i) if row.side and not row.frozen else weight, Q, rank, None)
    mask = None if start.mask is None else start.mask.to("meta")
    return InitialFactors(start.A.to("meta"), start.B.to("meta"), start.trainable, mask, start.subtract_start)


def step_bytes(task: TrainingTask, parameters: list[nn.Parameter], recomputed: bool) -> int:
    """Count the most bytes alive at once in an update beyond model and adapter: activations, gradients, Adam's two
    moments.

    Args:   task: its base on the meta device, with a start on it whose trainable factors are `parameters`.
            recomputed: activations are computed again in the backward pass, whatever the task's settings say.
    """
    base = task.base
    clean, condition = task.example(task.batch_size, "meta")
    known = [*base.model.parameters(), *base.model.buffers(), clean, *condition.tensors.values()]
    optimizer = OPTIMIZERS[task.config.optimizer](parameters, 1e-4)
    with (
        gradient_checkpointing(base.model, recomputed),
        torch.device("meta"),
        flash_attention(),
        LiveBytes(known) as live,
    ):
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
