"""Adapters that alternate during sampling, without merging: K-LoRA, LoRA Switch, LoRA Composite.

A schedule gives each adapter's strength in each layer at each denoising step; `apply_schedule` applies it to a model.
"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from ..adapter import Adapter
from ..families import Base
from ..injection import applied, set_layer_strengths, set_strengths
from ..sampling import generate
from .fusion_method import FusionInputs, FusionResult

Schedule = Callable[[int, int], Sequence[Mapping[str, float]]]
"""(step 0, 1, ..., steps) -> for each adapter {layer: strength}."""

STEPS_PER_TURN = 5
"""Denoising steps for which one adapter is active before the next one is (ComposLoRA)."""
ALPHA, BETA = 1.5, 0.5
"""K-LoRA's scale S = ALPHA t / T + BETA."""
OUTLIER_RATIO = 3.0
"""K-LoRA's gamma leaves out layers whose ratio is at least this many times the mean."""


def switch_schedule(adapters: Sequence[Adapter], weights: Sequence[float], turn: int = STEPS_PER_TURN) -> Schedule:
    """LoRA Switch (arXiv 2402.16843): adapter floor(t / turn) mod n acts at step t, alone.

    Its code changes in a callback that comes after the step, so that there the first adapter has turn + 1 steps.
    """

    def schedule(step: int, steps: int) -> list[dict[str, float]]:
        """The adapter whose turn it is acts alone."""
        acts = step // turn % len(adapters)
        return [
            dict.fromkeys(x.layers, w if k == acts else 0.0)
            for k, (x, w) in enumerate(zip(adapters, weights, strict=True))
        ]

    return schedule


def k_lora_schedule(adapters: Sequence[Adapter], weights: Sequence[float], alternating: bool = False) -> Schedule:
    """K-LoRA (arXiv 2502.18461): in each layer, at each step, the content or the style acts, never both.

    The content does where top_K |dW_c| / gamma > S(t) top_K |dW_s|: sums over the K = r_c r_s largest magnitudes;
    gamma is the layers' mean of sum |dW_c| / sum |dW_s|; S = 1.5 t / T + 0.5 rises, from content to style. The sums do
    not depend on t, so each layer has one number.

    Args:    adapters: content and style.  alternating: the code's default, S = (1.5 t / T + 0.85 * 1.5) mod 1.5:
             style first, content in the middle, style last.
    """
    content, style = adapters
    ratio = _top_magnitude_ratios(content, style)

    def schedule(step: int, steps: int) -> list[dict[str, float]]:
        """In each layer the content or the style acts, whichever is larger at this step."""
        scale = ALPHA * step / steps + BETA
        if alternating:
            scale = (ALPHA * step / steps + 0.85 * ALPHA) % ALPHA
        wins = {layer: value > scale for layer, value in ratio.items()}
        return [
            {layer: weights[0] * wins.get(layer, True) for layer in content.layers},
            {layer: weights[1] * (not wins.get(layer, False)) for layer in style.layers},
        ]

    return schedule


def _top_magnitude_ratios(content: Adapter, style: Adapter) -> dict[str, float]:
    """{layer of both: top_K |dW_c| / (gamma top_K |dW_s|)}; infinite where the style changes nothing."""
    tops, sums = {}, {}
    for layer in content.layers.keys() & style.layers.keys():
        count = content.layers[layer].rank * style.layers[layer].rank
        sizes = [x.dense(layer).abs().flatten().double() for x in (content, style)]
        tops[layer] = [float(x.topk(min(count, len(x))).values.sum()) for x in sizes]
        sums[layer] = [float(x.sum()) for x in sizes]
    of_layers = [c / s for c, s in sums.values() if s]
    mean = statistics.fmean(of_layers) if of_layers else 1.0
    gamma = statistics.fmean([x for x in of_layers if x < OUTLIER_RATIO * mean] or [mean]) or 1.0
    return {layer: c / gamma / s if s else math.inf for layer, (c, s) in tops.items()}


@contextlib.contextmanager
def apply_schedule(base: Base, names: Sequence[str], schedule: Schedule) -> Iterator[None]:
    """Context manager that sets the strengths of named adapters on the base's model by a schedule during sampling.

    Steps are counted by the timesteps of the model's calls: guidance may call twice at one step; a timestep that rises
    is the first of another image. PNDM lists a timestep twice, which is one step.
    """
    last: list[float] = []
    done = [0]

    def note(_model: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Count the schedule's steps by the timesteps of the model's calls."""
        time = float(torch.as_tensor(named["timestep"] if "timestep" in named else arguments[1]).flatten()[0])
        time = -time if base.family.time_rises else time
        if last and time == last[0]:
            return
        done[0] = done[0] + 1 if last and time < last[0] else 0
        last[:] = [time]
        for name, strengths in zip(names, schedule(done[0], len(base.pipe.scheduler.timesteps.unique())), strict=True):
            set_layer_strengths(base.model, name, strengths)

    handle = base.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def average_predictions(base: Base, strengths: Mapping[str, float]) -> Iterator[None]:
    """LoRA Composite (arXiv 2402.16843), as a context manager: the model predicts the mean of its predictions with each
    of the named adapters alone. Guidance is linear, so this is the mean of the guided predictions.
    """
    model = base.model
    own, replaced = model.forward, model.__dict__.get("forward")

    def averaged(*arguments: Any, **named: Any) -> tuple[Any]:
        """The mean of the model's predictions with each adapter alone: LoRA Composite."""
        predictions = []
        for name in strengths:
            set_strengths(model, {other: strengths[other] * (other == name) for other in strengths})
            predictions.append(own(*arguments, **{**named, "return_dict": False})[0])
        if isinstance(predictions[0], list):  # an image each
            return ([torch.stack(images).mean(0) for images in zip(*predictions, strict=True)],)
        return (torch.stack(predictions).mean(0),)

    model.forward = averaged
    try:
        yield
    finally:
        if replaced is None:
            del model.forward
        else:
            model.forward = replaced


def scheduled_fusion(
    schedule_of: Callable[[Sequence[Adapter], Sequence[float]], Schedule],
) -> Callable[[FusionInputs], FusionResult]:
    """A fusion method that samples with the adapters' strengths set by a schedule: K-LoRA, LoRA Switch."""

    def fuse(task: FusionInputs) -> FusionResult:
        """Sample with the adapters' strengths set by the schedule."""
        base, schedule, off = task.base, schedule_of(task.both, task.weights), [(x, 0.0) for x in task.both]

        def draw(prompts: Sequence[str], seeds: Sequence[int]) -> list[Any]:
            """Sample with each adapter's strengths set by the schedule."""
            with (
                base.on_device(),
                applied(base.model, off, not base.offload) as names,
                apply_schedule(base, names, schedule),
            ):
                return generate(base, list(prompts), seed=list(seeds))

        return FusionResult(draw, None)

    return fuse


def composite_fusion(task: FusionInputs) -> FusionResult:
    """LoRA Composite as a fusion method."""
    base, off = task.base, [(x, 0.0) for x in task.both]

    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> list[Any]:
        with base.on_device(), applied(base.model, off, not base.offload) as names:
            with average_predictions(base, dict(zip(names, task.weights, strict=True))):
                return generate(base, list(prompts), seed=list(seeds))

    return FusionResult(draw, None)
