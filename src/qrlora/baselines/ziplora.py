"""ZipLoRA (arXiv 2311.13600): merging with a trained merger coefficient for each input column of each update.

Letters: o outputs, i inputs, r rank; c content, s style; m (i,) the coefficients of a layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..adapter import Adapter, Pair
from ..families import Base
from ..image_loading import load_image
from ..injection import applied, set_strengths, with_coefficients
from ..merging import merge
from ..noising import noising_of
from ..training_example import TrainingExamples, encode_training_examples
from .fusion_method import FusionInputs, FusionResult, TrainingImage, sample_with_adapter

PENALTY = 0.01
"""lambda of the overlap (the paper)."""

Coefficients = dict[str, Tensor]
"""{layer: m (i,)}."""


def ziplora(learning_rate: float, steps: int = 100) -> Callable[[FusionInputs], FusionResult]:
    """ZipLoRA as a fusion method, its coefficients trained by Adam. The paper does not state its learning rate."""

    def fuse(task: FusionInputs) -> FusionResult:
        """Train merger coefficients, merge with them and sample: ZipLoRA."""
        content, style = (x.scaled(w) for x, w in zip(task.both, task.weights, strict=True))
        coefficients = train_merger_coefficients(task, content, style, learning_rate, steps)
        merged = merge_with_coefficients(content, style, *coefficients)
        config = {"rule": "ziplora", "weights": list(task.weights), "learning_rate": learning_rate, "steps": steps}
        config["largest_change"] = max(float((m - 1).abs().max()) for each in coefficients for m in each.values())
        return sample_with_adapter(
            task.base, replace(merged, header=replace(merged.header, method="ziplora", config=config))
        )

    return fuse


def merge_with_coefficients(
    content: Adapter, style: Adapter, of_content: Coefficients, of_style: Coefficients
) -> Adapter:
    """Merge with ZipLoRA's coefficients: dW = dW_c diag(m_c) + dW_s diag(m_s), exactly, at rank 2 r: B = [B_c B_s], A =
    [A_c diag m_c; A_s diag m_s]."""

    def scaled_by(adapter: Adapter, coefficients: Coefficients) -> Adapter:
        return replace(
            adapter, layers={x: Pair(pair.A * coefficients[x], pair.B) for x, pair in adapter.layers.items()}
        )

    return merge([scaled_by(content, of_content), scaled_by(style, of_style)], (1.0, 1.0), "stack")


def coefficient_overlap(of_content: Coefficients, of_style: Coefficients) -> Tensor:
    """The overlap of ZipLoRA's merger coefficients, sum over layers of mean_j |m_c,j m_s,j|, a scalar: the public
    code's form of the paper's |m_c . m_s|."""
    shared = of_content.keys() & of_style.keys()
    terms = [(of_content[x] * of_style[x]).abs().mean() for x in sorted(shared)]
    return torch.stack(terms).sum() if terms else torch.zeros(())


def train_merger_coefficients(
    task: FusionInputs, content: Adapter, style: Adapter, learning_rate: float, steps: int
) -> tuple[Coefficients, Coefficients]:
    """Train merger coefficients, from 1, so that the merged adapters predict for each training image what its own does.

    |(D + L_m)(x_c, p_c) - (D + L_c)(x_c, p_c)|^2 + the same of the style + 0.01 `coefficient_overlap`; mean squared
    errors, one noise and timestep for both images, one noisy copy of each in an update.
    """
    base, model = task.base, task.base.model
    examples = [_example(base, training_image) for training_image in (task.content_image, task.style_image)]
    noising = noising_of(base.pipe.scheduler.config, timestep_sampling=base.defaults.timestep_sampling)
    coefficients = [
        {x: torch.ones(p.shape[1], device=base.device) for x, p in each.layers.items()} for each in (content, style)
    ]
    parameters = [m.requires_grad_() for each in coefficients for m in each.values()]
    optimizer = torch.optim.Adam(parameters, learning_rate)
    generator = torch.Generator().manual_seed(task.seed)
    with base.on_device(), applied(model, [(content, 1.0), (style, 1.0)], not base.offload) as names:
        for _ in range(steps):
            noise = torch.randn(examples[0].latents.shape, generator=generator).to(base.device)
            time = noising.sample_time(1, generator).to(base.device)
            inputs = [(noising.add_noise(x.latents, noise, time), time, x.condition) for x in examples]
            loss = PENALTY * coefficient_overlap(*coefficients)
            for alone, model_inputs in zip(names, inputs, strict=True):
                with torch.no_grad():
                    set_strengths(model, {name: float(name == alone) for name in names})
                    target = base.family.predict(model, *model_inputs).float()
                set_strengths(model, dict.fromkeys(names, 1.0))
                with contextlib.ExitStack() as stack:
                    for name, each in zip(names, coefficients, strict=True):
                        stack.enter_context(with_coefficients(model, name, each))
                    prediction: Any = base.family.predict(model, *model_inputs)
                loss = loss + (prediction.float() - target).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    of_content, of_style = ({x: m.detach().cpu() for x, m in each.items()} for each in coefficients)
    return of_content, of_style


def _example(base: Base, training_image: TrainingImage) -> TrainingExamples:
    """A training image, encoded, on which ZipLoRA's coefficients are trained."""
    example = encode_training_examples(
        base, [load_image(training_image.image, base.defaults.resolution)], [training_image.prompt]
    )
    return replace(example, latents=example.latents.to(base.device), condition=example.condition.to(base.device))
