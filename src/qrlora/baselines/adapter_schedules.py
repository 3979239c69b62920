"""Adapters that take turns while a picture is drawn: K-LoRA, LoRA Switch, LoRA Composite. Nothing is merged.

A plan says how strongly each adapter acts in each layer at each denoising step; `following` keeps a model to it.
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

Plan = Callable[[int, int], Sequence[Mapping[str, float]]]
"""(step 0, 1, ..., steps) -> for each adapter {layer: strength}."""

TURN = 5
"""Steps that an adapter acts before the next one does (ComposLoRA)."""
ALPHA, BETA = 1.5, 0.5
"""K-LoRA's scale S = ALPHA t / T + BETA."""
OUTLIER = 3.0
"""K-LoRA leaves layers out of gamma whose ratio is that many times the mean."""


def switch(adapters: Sequence[Adapter], weights: Sequence[float], turn: int = TURN) -> Plan:
    """LoRA Switch (arXiv 2402.16843): adapter floor(t / turn) mod n acts at step t, alone.

    Its code changes in a callback that comes after the step, so that there the first adapter has turn + 1 steps.
    """

    def plan(step: int, steps: int) -> list[dict[str, float]]:
        acts = step // turn % len(adapters)
        return [
            dict.fromkeys(x.layers, w if k == acts else 0.0)
            for k, (x, w) in enumerate(zip(adapters, weights, strict=True))
        ]

    return plan


def k_lora(adapters: Sequence[Adapter], weights: Sequence[float], alternating: bool = False) -> Plan:
    """K-LoRA (arXiv 2502.18461): in each layer, at each step, the content or the style acts, never both.

    The content does where top_K |dW_c| / gamma > S(t) top_K |dW_s|: sums over the K = r_c r_s largest magnitudes;
    gamma is the layers' mean of sum |dW_c| / sum |dW_s|; S = 1.5 t / T + 0.5 rises, from content to style. The sums do
    not depend on t, so each layer has one number.

    Args:    adapters: content and style.  alternating: the code's default, S = (1.5 t / T + 0.85 * 1.5) mod 1.5:
             style first, content in the middle, style last.
    """
    content, style = adapters
    ratio = _ratios(content, style)

    def plan(step: int, steps: int) -> list[dict[str, float]]:
        scale = ALPHA * step / steps + BETA
        if alternating:
            scale = (ALPHA * step / steps + 0.85 * ALPHA) % ALPHA
        wins = {layer: value > scale for layer, value in ratio.items()}
        return [
            {layer: weights[0] * wins.get(layer, True) for layer in content.layers},
            {layer: weights[1] * (not wins.get(layer, False)) for layer in style.layers},
        ]

    return plan


def _ratios(content: Adapter, style: Adapter) -> dict[str, float]:
    """{layer of both: top_K |dW_c| / (gamma top_K |dW_s|)}; infinite where the style changes nothing."""
    tops, sums = {}, {}
    for layer in content.layers.keys() & style.layers.keys():
        count = content.layers[layer].rank * style.layers[layer].rank
        sizes = [x.dense(layer).abs().flatten().double() for x in (content, style)]
        tops[layer] = [float(x.topk(min(count, len(x))).values.sum()) for x in sizes]
        sums[layer] = [float(x.sum()) for x in sizes]
    of_layers = [c / s for c, s in sums.values() if s]
    mean = statistics.fmean(of_layers) if of_layers else 1.0
    gamma = statistics.fmean([x for x in of_layers if x < OUTLIER * mean] or [mean]) or 1.0
    return {layer: c / gamma / s if s else math.inf for layer, (c, s) in tops.items()}


def explain(plan: Plan, steps: int) -> dict[str, list[tuple[float, ...]]]:
    """{layer: the adapters' strengths at each step}; 0 for an adapter that is not on the layer."""
    rows = [plan(step, steps) for step in range(steps)]
    layers = dict.fromkeys(layer for each in rows[0] for layer in each)
    return {layer: [tuple(each.get(layer, 0.0) for each in row) for row in rows] for layer in layers}


@contextlib.contextmanager
def following(base: Base, names: Sequence[str], plan: Plan) -> Iterator[None]:
    """Adapters on the base's model, by name, act as planned while the pipeline draws, for the length of a `with`.

    Steps are counted by the time that the model is asked at: guidance may ask twice at one step; a time that rises is
    the first of another picture.
    """
    last: list[float] = []
    done = [0]

    def note(_model: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        time = float(torch.as_tensor(named["timestep"] if "timestep" in named else arguments[1]).flatten()[0])
        if last and time == last[0]:
            return
        done[0] = done[0] + 1 if last and time < last[0] else 0
        last[:] = [time]
        for name, strengths in zip(names, plan(done[0], base.pipe.num_timesteps), strict=True):
            set_layer_strengths(base.model, name, strengths)

    handle = base.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def composite(base: Base, strengths: Mapping[str, float]) -> Iterator[None]:
    """LoRA Composite (arXiv 2402.16843): for the length of a `with`, the model's answer is the mean of its answers with
    each of the named adapters alone. Guidance is linear, so this is the mean of the guided answers.
    """
    model = base.model
    own, replaced = model.forward, model.__dict__.get("forward")

    def averaged(*arguments: Any, **named: Any) -> tuple[Any]:
        answers = []
        for name in strengths:
            set_strengths(model, {other: strengths[other] * (other == name) for other in strengths})
            answers.append(own(*arguments, **{**named, "return_dict": False})[0])
        return (torch.stack(answers).mean(0),)

    model.forward = averaged
    try:
        yield
    finally:
        if replaced is None:
            del model.forward
        else:
            model.forward = replaced


def planned(plan_of: Callable[[Sequence[Adapter], Sequence[float]], Plan]) -> Callable[[FusionInputs], FusionResult]:
    """A fusion that draws by a plan."""

    def fuse(task: FusionInputs) -> FusionResult:
        base, plan, off = task.base, plan_of(task.both, task.weights), [(x, 0.0) for x in task.both]

        def draw(prompts: Sequence[str], seeds: Sequence[int]) -> list[Any]:
            with base.on_device(), applied(base.model, off, not base.offload) as names, following(base, names, plan):
                return generate(base, list(prompts), seed=list(seeds))

        return FusionResult(draw, None)

    return fuse


def composed(task: FusionInputs) -> FusionResult:
    """LoRA Composite as a fusion."""
    base, off = task.base, [(x, 0.0) for x in task.both]

    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> list[Any]:
        with base.on_device(), applied(base.model, off, not base.offload) as names:
            with composite(base, dict(zip(names, task.weights, strict=True))):
                return generate(base, list(prompts), seed=list(seeds))

    return FusionResult(draw, None)
