"""estimate(base) -> Report: what a training at full size takes, before anything is downloaded.

Parameters, file sizes and memory are counted with the real code on the meta device: nothing about them is guessed but
MARGIN and RESERVED. Where the whole model fits it is then built with random weights and run for real: basis, updates,
merge, a denoising step. Where it does not, seconds are those of one real block of each kind, times how many there are:
extrapolated, and Report.how says which.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..adapter import Header
from ..config import TrainConfig
from ..devices import DTYPES, choose_device
from ..families import quantization
from ..families.base_without_weights import blank_base, buffers_and_tables
from ..families.model_dtype import cast_model, is_kept_in_float32
from ..files import size_in_bytes
from ..initialisation_methods import METHODS
from ..injection import detach
from ..training import check_config_fits_base
from ..training.distributed import Processes
from ..training.trainable_adapter import ADAPTER_NAME
from . import component_memory, memory_counting, run_whole_model, time_blocks
from .device_memory import free_bytes
from .estimate_report import How, Report
from .training_task import TrainingTask

QUANTIZED_BYTES: dict[str, Callable[[Tensor], int]] = {
    "int8": lambda W: W.numel() + 5 * len(W),
    "float8": lambda W: W.numel() + 4 * len(W),
    "nf4": lambda W: math.ceil(W.numel() / 2) + 4 * math.ceil(W.numel() / 64) + 4 * 16,
}
"""Quantisation -> bytes of a linear layer's weight W (o, i): 8 bits have a float32 for each output, int8
its zero, too; 4 bits a float32 for each 64 numbers, and one for each of their 16 levels."""

OnStage = Callable[[str, float], Any]
"""(what, share done 0..1)."""


def estimate(
    name: str,
    *,
    method: str = "qr",
    against: str = "lora",
    how: How | Literal["auto"] = "auto",
    steps: int = 3,
    device: str = "auto",
    dtype: str = "bfloat16",
    prompt_tokens: int | None = None,
    on_stage: OnStage = lambda _what, _share: None,
    **settings: Any,
) -> Report:
    """What training and sampling with a base take.

    Args:    name: as `families.base_without_weights.blank_base`.  against: another method to compare with, or "".
             how: as How; auto: the whole model if it fits, else blocks.  steps: timed runs, after one that warms up.
             prompt_tokens: of the prompt that is trained with, with its template's end: a short one takes less where
             the base does not pad it (Qwen-Image, Z-Image, Krea 2); None: the longest that the base reads.
             settings: rank, targets, resolution, quantize and others of TrainConfig; None for the base's own.
    Raises:  OSError: no such base.  ValueError: an unknown method, dtype, device or target; a rank or resolution that
             does not fit; the whole model is wanted and does not fit.
    """
    execution_device, methods = choose_device(device), [x for x in dict.fromkeys((method, against)) if x]
    for wrong in (x for x in methods if x not in METHODS):
        raise ValueError(f"no method {wrong!r}; known: {', '.join(METHODS)}")
    if how not in ("auto", *get_args(How)) or steps < 1:
        known = ", ".join(("auto", *get_args(How)))
        raise ValueError(f"an estimate runs one of {known}, with 1 step or more; got {how!r} and {steps}")
    if prompt_tokens is not None and prompt_tokens < 1:
        raise ValueError(f"a prompt has 1 token or more, got prompt_tokens={prompt_tokens}")
    config = TrainConfig(base=name, method=method, device=device, **{"dtype": dtype, **settings})
    on_stage("building the model without weights", 0.0)
    base, spare, tokens = blank_base(name)
    config = config.filled(base.defaults)
    check_config_fits_base(base, config, Processes())
    for component, module in {**spare, "": base.model}.items():
        cast_model(module, torch.float32 if component == "vae" else DTYPES[dtype]).requires_grad_(False).eval()
    task = TrainingTask(base, tokens, config, prompt_tokens)
    on_stage("counting the memory of encoding and sampling", 0.0)
    settings_shown = ("base", "method", "rank", "targets", "resolution", "batch_size", "dtype", "quantize")
    report = Report(
        **{x: getattr(config, x) for x in settings_shown},
        prompt_tokens=prompt_tokens,
        gradient_checkpointing=bool(config.gradient_checkpointing),
        device=torch.cuda.get_device_name(execution_device)
        if execution_device.type == "cuda"
        else execution_device.type,
        free=free_bytes(execution_device),
        spare={part: component_memory.module_bytes([module]) for part, module in spare.items()},
        opening=component_memory.encoding_bytes(task, spare),
        drawing=component_memory.sampling_bytes(task, spare),
        **_counted_from_shapes(task, methods, on_stage),
    )
    why_not = _why_not_whole(report, methods, execution_device)
    if how == "whole" and why_not:
        raise ValueError(
            f"{why_not}: gradient checkpointing or a smaller resolution needs less, 'blocks' runs anywhere"
        )
    if how == "auto":
        how, report = "blocks" if why_not else "whole", replace(report, why=why_not)
    if how == "count":
        return report
    stages = {"whole": run_whole_model.run_whole_model, "blocks": time_blocks.estimate_from_blocks}[how](
        task, methods, execution_device, steps, on_stage
    )
    return replace(report, how=how, stages=stages)


def _why_not_whole(report: Report, methods: list[str], device: torch.device) -> str:
    """What keeps the whole model from being run on a device, or ""."""
    try:
        quantization.check_quantize(report.quantize, device)
    except ValueError as error:
        return str(error)
    need = max(report.training(*report.chosen, method) for method in methods)
    if need <= report.free:
        return ""
    return f"the whole model needs {need / 1e9:.1f} GB, {report.device} has {report.free / 1e9:.1f} GB free"


def _counted_from_shapes(task: TrainingTask, methods: list[str], on_stage: OnStage) -> dict[str, Any]:
    """What an estimate's report has of model, adapter, files and memory, counted from shapes. The base is left as it
    was."""
    base, rank = task.base, task.rank
    shapes = {layer: (int(w.shape[0]), int(w.shape[1])) for layer, w in base.weights(task.targets)}
    header = Header(
        family=base.family.name,
        component=base.family.component,
        base=base.name,
        method=task.config.method,
        rank=rank,
        targets=task.targets,
    )
    contents = ("full", "compact") if METHODS[header.method].frozen else ("full",)
    adapter: dict[str, int] = {}
    step: dict[str, dict[str, int]] = {}
    own = {id(x) for x in (*base.model.parameters(), *base.model.buffers())}
    latents, condition = task.example(1, "meta")
    inputs = sum(x.nbytes for x in (latents, *condition.tensors.values())) * (1 + task.batch_size)
    facts = {
        "family": base.family.name,
        "parameters": sum(p.numel() for p in base.model.parameters()),
        "layers": len(shapes),
        "trained": {x: sum(METHODS[x].trainable_parameters(*s, rank) for s in shapes.values()) for x in methods},
        "files": {x: size_in_bytes(shapes, header, x, dtype=torch.bfloat16) for x in contents},
        "weights": weight_bytes(base.model, task.config.dtype),
        "buffers": inputs + sum(x.nbytes for x in buffers_and_tables(base.model)),
    }
    parts = [(method, activations) for method in methods for activations in ("kept", "recomputed")]
    for method in methods:
        parameters = memory_counting.initialise_on_meta(task.with_method(method))
        held = (*base.model.parameters(), *base.model.buffers())
        adapter[method] = sum(x.nbytes for x in held if id(x) not in own)
        step[method] = {}
        for activations in ("kept", "recomputed"):
            on_stage("counting the memory of updates", parts.index((method, activations)) / len(parts))
            step[method][activations] = memory_counting.step_bytes(task, parameters, activations == "recomputed")
        detach(base.model, ADAPTER_NAME)
    return {**facts, "adapter": adapter, "step": step}


def weight_bytes(model: nn.Module, dtype: str) -> dict[str, int]:
    """{dtype, int8, float8, nf4: bytes of a model that is in this dtype}; quantised are the weights of its linear
    layers, but for those that its class keeps in float32."""
    linear = [(name, layer.weight) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    weights = [W for name, W in linear if not is_kept_in_float32(model, name)]
    whole = sum(p.nbytes for p in model.parameters())
    rest = whole - sum(W.nbytes for W in weights)
    return {dtype: whole, **{name: rest + sum(map(of, weights)) for name, of in QUANTIZED_BYTES.items()}}
