"""The loop: one for every family and method, read from top to bottom.

Letters: b noisy copies of the one picture in an update, c latent channels, h w latent size.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time as clock
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..data import Example
from ..families import Base
from ..noise import Noising, noising_of
from .checkpoint import Checkpoint

NAME = "learning"
"""Name of the adapter on the model while it learns."""


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
    parameters: list[nn.Parameter],
    generator: torch.Generator,
    identity: Mapping[str, Any],
    on_step: Callable[[Progress], Any],
    on_preview: Callable[[int], Any],
) -> None:
    """From the start, or from the checkpoint of an equal run, to the last update.

    Args:    config: without None.  parameters: the learning factors that are on the base's model under NAME.
             generator: on the CPU.  identity: what must be equal for a checkpoint to be this run's.
             on_preview: called with the step, every `config.preview_every` updates.
    Raises:  ValueError: NaN or infinity in the loss; a checkpoint of another run.
             OSError: a checkpoint cannot be written.
             KeyboardInterrupt: after Ctrl-C, with a checkpoint on disk.
    """
    assert config.steps is not None and config.batch_size is not None and config.times is not None
    model, device, steps = base.model, base.device, config.steps
    noising = noising_of(base.pipe.scheduler.config, config.min_snr_gamma, config.times)
    clean = example.latents.to(device).expand(config.batch_size, -1, -1, -1)
    condition = example.condition.to(device).rows([0] * config.batch_size)
    optimizer = OPTIMIZERS[config.optimizer](parameters, lr=config.learning_rate, fused=device.type in ("cpu", "cuda"))
    state = Checkpoint(config.checkpoints, identity, model, NAME, optimizer, generator)
    first, started = state.resume(steps), clock.monotonic()
    with recomputing(model, config.gradient_checkpointing), ctrl_c_waits() as stopped, tensorboard(config) as log:
        for step in range(first + 1, steps + 1):
            # drawn on the CPU, so that a seed means the same noise on every device
            noise = torch.randn(clean.shape, generator=generator).to(device)
            time = noising.sample_time(len(clean), generator).to(device)
            loss = denoising_loss(base.family.predict, model, noising, clean, noise, time, condition)
            value = loss.item()
            if not math.isfinite(value):
                raise ValueError(f"the loss is {value} at step {step} of {steps}: {_remedy(config)}")
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

            log(value, step)
            on_step(Progress(step, steps, value, (clock.monotonic() - started) / (step - first) * (steps - step)))
            if stopped() or (config.save_every and step % config.save_every == 0 and step < steps):
                state.save(step)
            if stopped():
                raise KeyboardInterrupt(f"stopped after step {step} of {steps}; the same command goes on from there")
            if config.preview_every and step % config.preview_every == 0:
                on_preview(step)


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

    Args:    clean, noise (b, c, h, w); time (b,); condition of b rows.
    Returns: a scalar.
    """
    guess = predict(model, noising.add_noise(clean, noise, time), time, condition)
    error = (guess.float() - noising.target(clean, noise, time)).square().flatten(1).mean(1)
    return (noising.weighting(time) * error).mean()


# fused: one kernel for hundreds of small matrices instead of ten for each
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def _remedy(config: TrainConfig) -> str:
    if config.dtype == "float16":
        return "float16 overflows, use dtype=bfloat16 or dtype=float32"
    return f"lower learning_rate, which is {config.learning_rate:g}"


@contextlib.contextmanager
def ctrl_c_waits() -> Iterator[Callable[[], bool]]:
    """Ctrl-C is noted, for an update to end whole; a second one stops at once. Only a main thread gets signals.

    Yields: a function that says whether Ctrl-C was pressed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def recomputing(model: Any, wanted: bool) -> Iterator[None]:
    """Activations are computed again in the backward pass for the length of a `with`, if wanted."""
    if wanted:
        model.enable_gradient_checkpointing()
    try:
        yield
    finally:
        if wanted:
            model.disable_gradient_checkpointing()


@contextlib.contextmanager
def tensorboard(config: TrainConfig) -> Iterator[Callable[[float, int], None]]:
    """Yields (loss, step) -> None, which logs to a folder beside the output if asked for.

    Raises: ValueError: tensorboard is not installed.
    """
    if not config.tensorboard:
        yield lambda _loss, _step: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("tensorboard is not installed: pip install 'qrlora[tensorboard]'") from error
    with SummaryWriter(str(Path(config.output).with_suffix(".tensorboard"))) as writer:
        yield lambda loss, step: writer.add_scalar("loss", loss, step)
