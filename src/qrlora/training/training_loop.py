"""The training loop: one for every family and method, read from top to bottom.

dtypes: the base computes in its own; A, B, their gradients, the loss and the optimizer's state are float32.
Gradients of activations are in the base's dtype, which needs a `loss_scale` in float16. There is no autocast anywhere.

Letters: b noisy copies of training images in an update, c latent channels, h w latent size.
"""

from __future__ import annotations

import contextlib
import math
import time as clock
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .. import optional_dependencies
from ..config import TrainConfig
from ..families import Base
from ..noising import noising_of
from ..training_example import TrainingExamples
from .batch_images import make_batches
from .checkpoint import Checkpoint
from .distributed import Processes, is_rank_zero
from .gradient_checkpointing import gradient_checkpointing, needs_gradient_checkpointing
from .loss_scale import LossScale
from .losses import denoising_loss
from .optimizers import OPTIMIZERS, linear_decay

T = TypeVar("T")
ASYNCHRONOUS_DEVICES = frozenset({"cuda"})
"""Devices that compute while the CPU goes on: there a loss is read during the next update, not waited for."""


@dataclass(frozen=True)
class Progress:
    """Progress of a run after an update."""

    step: int
    """Updates done, 1..steps."""
    steps: int
    """Total updates."""
    loss: float
    """Of this update: a mean squared error, unitless."""
    seconds_left: float
    """At the mean speed since the run started or was resumed."""


def run_training_loop(
    config: TrainConfig,
    base: Base,
    examples: TrainingExamples,
    checkpoint: Checkpoint,
    processes: Processes,
    stop_requested: Callable[[], bool],
    on_step: Callable[[Progress], Any],
    on_preview: Callable[[int], Any],
    on_adapter: Callable[[int], Any],
) -> None:
    """Train the adapter from its initial factors, or from the checkpoint of an equal run, to the last update.

    Args:    config: without None.  checkpoint: the adapter on the base's model, the random generator (on the CPU), and
             the folder of their checkpoint.  stop_requested: () -> whether to stop after the current update.
             on_step, on_preview, on_adapter: called on rank 0; the last two with the step, every `preview_every` and
             `adapter_every` updates, but for the last one's adapter.
    Raises:  ValueError: NaN or infinity in the loss; a checkpoint of another run.
             OSError: another process has ended.
             KeyboardInterrupt: stopped on request; the message says from which step it can resume.
    """
    steps = config.steps
    assert steps is not None
    updates = make_updates(config, base, examples, checkpoint, processes)
    optimizer, loss_scale = updates.optimizer, updates.loss_scale
    first, started = checkpoint.resume(optimizer, loss_scale), clock.monotonic()
    last_saved, unread = first, UnreadLosses(config)
    recompute = updates.recompute_activations(base.model, first + 1) if first < steps else None
    with gradient_checkpointing(base.model, recompute) as with_oom_retry, tensorboard_logger(config) as log:
        for step in range(first + 1, steps + 1):
            loss, stopped = updates.update(step, with_oom_retry, stop_requested)
            unread.append(step, loss)
            saving = step < steps and (stopped or is_due(config.save_every, step))
            extracting = step < steps and is_due(config.adapter_every, step)
            previewing = is_due(config.preview_every, step)
            # no checkpoint, preview or adapter while a loss is unread: it may be NaN
            wait = saving or previewing or extracting or step == steps
            losses = unread.read(wait or base.device.type not in ASYNCHRONOUS_DEVICES)
            if processes.is_rank_zero and extracting:  # before the checkpoint, from which it would not be made again
                on_adapter(step)
            if saving and (not processes.is_rank_zero or checkpoint.save(step, optimizer, loss_scale)):
                last_saved = step
            for of, value in losses if processes.is_rank_zero else ():  # after saving: a closed terminal fails here
                log(value, of)
                on_step(Progress(of, steps, value, (clock.monotonic() - started) / (of - first) * (steps - of)))
            if stopped and step < steps:
                processes.barrier()  # for the checkpoint: a launcher kills the others when one process ends
                raise KeyboardInterrupt(f"stopped after step {step} of {steps}; {_resume_hint(last_saved, step)}")
            if processes.is_rank_zero and previewing:
                on_preview(step)


def is_due(every: int, step: int) -> bool:
    """Whether what is done after every so many updates (0: never) is done after this one."""
    return bool(every) and step % every == 0


@dataclass(frozen=True)
class Updates:
    """The updates of a training, and what they read and write."""

    config: TrainConfig
    parameters: Sequence[nn.Parameter]
    loss_of_step: Callable[[int], Tensor]
    generator: torch.Generator
    """Of noise and timesteps."""
    optimizer: torch.optim.Optimizer
    loss_scale: LossScale
    processes: Processes

    def update(
        self, step: int, with_oom_retry: Callable[[Callable[[], Tensor]], Tensor], stop_requested: Callable[[], bool]
    ) -> tuple[Tensor, bool]:
        """The update of a step, repeated with its own noise while gradients overflow in float16.

        Returns: the loss, averaged over the processes, on the device; whether any process is asked to stop.
        """
        config = self.config
        assert config.steps is not None and config.learning_rate is not None and config.lr_decay is not None
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * linear_decay(step, config.steps, config.lr_decay)
        compute_gradients = partial(self._compute_gradients, step, self.generator.get_state())
        while True:
            loss = with_oom_retry(compute_gradients)
            loss, stopped = self.processes.average_gradients(self.parameters, loss, stop_requested())
            if self.loss_scale.step(self.optimizer):
                return loss, stopped
            check_finite(self.config, step, loss.item())

    def _compute_gradients(self, step: int, generator_state: Tensor) -> Tensor:
        """The forward and backward pass of an update. Returns: the loss of this process's shard."""
        self.generator.set_state(generator_state)
        self.optimizer.zero_grad()
        loss = self.loss_of_step(step)
        self.loss_scale.backward(loss)
        return loss.detach()

    def recompute_activations(self, model: nn.Module, step: int) -> bool | None:
        """`config.gradient_checkpointing`; if it is None, True where a pass does not fit into memory, else None: once
        memory has run out. The generator is left as it was."""
        if self.config.gradient_checkpointing is not None:
            return self.config.gradient_checkpointing
        generator_state, known = self.generator.get_state(), [*model.parameters(), *model.buffers()]
        needed = needs_gradient_checkpointing(model, partial(self.loss_of_step, step), self.parameters, known)
        self.generator.set_state(generator_state)
        return needed or None


def make_updates(
    config: TrainConfig, base: Base, examples: TrainingExamples, checkpoint: Checkpoint, processes: Processes
) -> Updates:
    """The updates of the adapter that a checkpoint is of, with an optimizer and a loss scale that have not begun."""
    assert config.learning_rate is not None
    parameters = list(checkpoint.adapter.factors.values())
    loss_of_step = make_loss(config, base, examples, checkpoint.generator, processes)
    optimizer = OPTIMIZERS[config.optimizer](parameters, config.learning_rate)
    loss_scale = LossScale(base.device, base.model.dtype)  # pyright: ignore[reportArgumentType]
    return Updates(config, parameters, loss_of_step, checkpoint.generator, optimizer, loss_scale, processes)


class UnreadLosses:
    """Losses of updates that a device may still be computing."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._unread: list[tuple[int, Callable[[], float]]] = []

    def append(self, step: int, loss: Tensor) -> None:
        """Add the loss of a step, a scalar on the device, without waiting for it."""
        self._unread.append((step, async_item(loss)))

    def read(self, wait: bool) -> list[tuple[int, float]]:
        """(step, loss) of all unread ones, but of the last one only if `wait`. Raises: ValueError: NaN or infinity."""
        count = len(self._unread) - (not wait)
        read = [check_finite(self._config, step, value()) for step, value in self._unread[:count]]
        del self._unread[:count]
        return read


def check_finite(config: TrainConfig, step: int, loss: float) -> tuple[int, float]:
    """(step, loss). Raises: ValueError: the loss is NaN or infinity; with what to change."""
    if not math.isfinite(loss):
        raise ValueError(f"the loss is {loss} at step {step} of {config.steps}: {_nonfinite_loss_hint(config)}")
    return step, loss


def async_item(number: Tensor) -> Callable[[], float]:
    """`number.item()` as a function that waits for this number only, not for later work in the device's queue."""
    if number.device.type != "cuda":
        return number.item
    here = torch.empty(number.shape, dtype=number.dtype, pin_memory=True)
    here.copy_(number, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(number.device))

    def read() -> float:
        copied.synchronize()
        return here.item()

    return read


def make_loss(
    config: TrainConfig, base: Base, examples: TrainingExamples, generator: torch.Generator, processes: Processes
) -> Callable[..., Tensor]:
    """(step, 1 if none is given) -> the loss of this process's shard of the update's noisy copies.

    Every process draws all noise and timesteps, on the CPU, so that a seed means the same noise on every device.
    """
    assert config.batch_size is not None and config.timestep_sampling is not None
    device, batch_size = base.device, config.batch_size
    noising = noising_of(base.pipe.scheduler.config, config.min_snr_gamma, config.timestep_sampling)
    batch_of_step = make_batches(base, examples, batch_size, config.seed, processes)

    def loss_of_step(step: int = 1) -> Tensor:
        """The loss of an update, on this process's shard of its noisy copies."""
        noise = torch.randn(batch_size, *examples.latents.shape[1:], generator=generator)
        time = noising.sample_time(len(noise), generator)
        noise, time = processes.shard(noise), processes.shard(time)
        if device.type == "cuda":
            noise = noise.pin_memory()  # from pageable memory the copy would wait for the device
        noise = noise.to(device, non_blocking=True)
        clean, condition, weights = batch_of_step(step)
        return denoising_loss(base.family.predict, base.model, noising, clean, noise, time, condition, weights)

    return loss_of_step


def _resume_hint(last_saved: int, step: int) -> str:
    """From which step the training loop would resume, given the step of the last checkpoint (0: none)."""
    if last_saved == step:
        return "the same command goes on from there"
    way_on = f"goes on from step {last_saved}" if last_saved else "begins anew"
    return f"no checkpoint could be written: the same command {way_on}"


def _nonfinite_loss_hint(config: TrainConfig) -> str:
    if config.dtype == "float16":
        return "float16 overflows, use dtype=bfloat16 or dtype=float32"
    return f"lower learning_rate, which is {config.learning_rate:g}"


@contextlib.contextmanager
def tensorboard_logger(config: TrainConfig) -> Iterator[Callable[[float, int], None]]:
    """Yields (loss, step) -> None, which on rank 0 logs to a folder beside the output, if `config.tensorboard`.

    Raises: MissingExtra: tensorboard is not installed.
    """
    if not config.tensorboard or not is_rank_zero():
        yield lambda _loss, _step: None
        return
    optional_dependencies.require("tensorboard", reason="tensorboard=true")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(Path(config.output).with_suffix(".tensorboard"))) as writer:
        yield lambda loss, step: writer.add_scalar("loss", loss, step)
