"""The loop: one for every family and method, read from top to bottom.

Number types: the base computes in its own, `apply` keeps A and B in float32, the loss is float32 whatever the base
answers in, and so are their gradients and the optimizer's state; gradients of activations are in the base's own, which
takes a `loss_scale` in float16. There is no autocast anywhere.

Letters: b noisy copies of the one picture in an update, c latent channels, h w latent size.
"""

from __future__ import annotations

import contextlib
import math
import time as clock
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .. import extras
from ..config import TrainConfig
from ..families import Base
from ..noising import Noising, noising_of
from ..training_example import Example
from .checkpoint import Checkpoint
from .distributed import Processes, is_rank_zero
from .gradient_checkpointing import must_recompute, recomputing
from .loss_scale import LossScale
from .optimizers import OPTIMIZERS, linear_decay

T = TypeVar("T")
ASYNCHRONOUS_DEVICES = frozenset({"cuda"})
"""Devices that work while the CPU goes on: there a loss is read during the next update, not waited for."""


@dataclass(frozen=True)
class Progress:
    """Where a run is after an update."""

    step: int
    """Updates done, 1..steps."""
    steps: int
    """Updates in all."""
    loss: float
    """Of this update: a mean squared error, unitless."""
    seconds_left: float
    """At the mean speed since the run started or was resumed."""


def run(
    config: TrainConfig,
    base: Base,
    example: Example,
    checkpoint: Checkpoint,
    processes: Processes,
    asked: Callable[[], bool],
    on_step: Callable[[Progress], Any],
    on_preview: Callable[[int], Any],
) -> None:
    """From the start, or from the checkpoint of an equal run, to the last update.

    Args:    config: without None.  checkpoint: what learns on the base's model, the random numbers (on the CPU), and
             where they are kept.  asked: () -> whether the run should end after the update at hand.
             on_step, on_preview: called in the main process; previews with the step, every `config.preview_every`.
    Raises:  ValueError: NaN or infinity in the loss; a checkpoint of another run.
             OSError: another process has ended.
             KeyboardInterrupt: it was asked to end; tells from where it would go on.
    """
    steps, rate, decay, model = config.steps, config.learning_rate, config.decay, base.model
    assert steps is not None and rate is not None and decay is not None
    parameters, generator = list(checkpoint.learner.factors.values()), checkpoint.generator
    draw = make_loss(config, base, example, generator, processes)
    optimizer = OPTIMIZERS[config.optimizer](parameters, rate)
    scale = LossScale(base.device, model.dtype)  # pyright: ignore[reportArgumentType]
    first, started = checkpoint.resume(optimizer, scale), clock.monotonic()
    kept = first
    wanted = config.gradient_checkpointing
    if wanted is None and first < steps:
        noise, there = generator.get_state(), [*model.parameters(), *model.buffers()]
        wanted = must_recompute(model, draw, parameters, there) or None
        generator.set_state(noise)
    recomputed = recomputing(model, wanted)
    with recomputed as with_oom_retry, tensorboard(config) as log:

        def update(before: Tensor) -> Tensor:
            generator.set_state(before)
            optimizer.zero_grad()
            loss = draw()
            scale.backward(loss)
            return loss.detach()

        def checked(step: int, value: float) -> tuple[int, float]:
            if not math.isfinite(value):
                raise ValueError(f"the loss is {value} at step {step} of {steps}: {_remedy(config)}")
            return step, value

        def tell(step: int, value: float) -> None:
            log(value, step)
            on_step(Progress(step, steps, value, (clock.monotonic() - started) / (step - first) * (steps - step)))

        unread: list[tuple[int, Callable[[], float]]] = []
        for step in range(first + 1, steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = rate * linear_decay(step, steps, decay)
            attempt = partial(update, generator.get_state())
            loss, stopped = processes.average(parameters, with_oom_retry(attempt), asked())
            while not scale.step(optimizer):
                checked(step, loss.item())
                loss, stopped = processes.average(parameters, with_oom_retry(attempt), asked())
            unread.append((step, async_item(loss)))
            saving = step < steps and bool(stopped or (config.save_every and step % config.save_every == 0))
            showing = bool(config.preview_every) and step % config.preview_every == 0
            # nothing is written or drawn while a loss is unread
            late = base.device.type in ASYNCHRONOUS_DEVICES and not (saving or showing or step == steps)
            known = [checked(of, value()) for of, value in unread[: len(unread) - late]]
            del unread[: len(known)]
            if saving and (not processes.main or checkpoint.save(step, optimizer, scale)):
                kept = step
            for each in known if processes.main else ():  # after it is saved: a closed terminal takes no more words
                tell(*each)
            if stopped and step < steps:
                processes.wait()  # for the checkpoint: who ends early would have the others killed
                raise KeyboardInterrupt(f"stopped after step {step} of {steps}; {_goes_on(kept, step)}")
            if processes.main and showing:
                on_preview(step)


def async_item(number: Tensor) -> Callable[[], float]:
    """() -> a number that a device is to compute, as soon as it has: what is queued behind it is not waited for, as
    `item` would."""
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
    config: TrainConfig, base: Base, example: Example, generator: torch.Generator, processes: Processes
) -> Callable[[], Tensor]:
    """() -> the loss of this process's rows of the next draw of noise and times; the whole batch is drawn everywhere.

    Drawn on the CPU, so that a seed means the same noise on every device, and sent without waiting for the device.
    Latents and condition, which never change, are there already.
    """
    assert config.batch_size is not None and config.times is not None
    device, batch, size = base.device, config.batch_size, config.batch_size // processes.count
    noising = noising_of(base.pipe.scheduler.config, config.min_snr_gamma, config.times)
    clean = example.latents.to(device).expand(size, -1, -1, -1)
    condition = example.condition.to(device).rows([0] * size)

    def draw() -> Tensor:
        noise = torch.randn(batch, *clean.shape[1:], generator=generator)
        time = noising.sample_time(len(noise), generator)
        noise, time = processes.share(noise), processes.share(time)
        if device.type == "cuda":
            noise = noise.pin_memory()  # from other memory the copy waits for the device
        noise = noise.to(device, non_blocking=True)
        return denoising_loss(base.family.predict, base.model, noising, clean, noise, time, condition)

    return draw


def denoising_loss(
    predict: Callable[..., Tensor],
    model: nn.Module,
    noising: Noising,
    clean: Tensor,
    noise: Tensor,
    time: Tensor,
    condition: Any,
) -> Tensor:
    """Mean over the batch of weight(time) |prediction - target|^2 / (c h w), in float32 whatever the base's dtype.

    Args:    clean, noise (b, c, h, w); time (b,), best on the CPU, where the noising looks it up; condition of b rows.
    Returns: a scalar.
    """
    guess = predict(model, noising.add_noise(clean, noise, time), time.to(clean.device, non_blocking=True), condition)
    error = (guess.float() - noising.target(clean, noise, time)).square().flatten(1).mean(1)
    return (noising.weighting(time).to(error.device, non_blocking=True) * error).mean()


def _goes_on(kept: int, step: int) -> str:
    """Where the command that is given again begins, by the step of the last checkpoint (0: none)."""
    if kept == step:
        return "the same command goes on from there"
    way_on = f"goes on from step {kept}" if kept else "begins anew"
    return f"no checkpoint could be written: the same command {way_on}"


def _remedy(config: TrainConfig) -> str:
    if config.dtype == "float16":
        return "float16 overflows, use dtype=bfloat16 or dtype=float32"
    return f"lower learning_rate, which is {config.learning_rate:g}"


@contextlib.contextmanager
def tensorboard(config: TrainConfig) -> Iterator[Callable[[float, int], None]]:
    """Yields (loss, step) -> None, which logs to a folder beside the output if asked for, in the main process.

    Raises: MissingExtra: tensorboard is not installed.
    """
    if not config.tensorboard or not is_rank_zero():
        yield lambda _loss, _step: None
        return
    extras.require("tensorboard", reason="tensorboard=true")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(Path(config.output).with_suffix(".tensorboard"))) as writer:
        yield lambda loss, step: writer.add_scalar("loss", loss, step)
