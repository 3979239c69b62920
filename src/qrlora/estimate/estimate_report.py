"""What an estimate finds, and which graphics card is enough for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .training_task import Stage

How = Literal["whole", "blocks", "count"]
"""The whole model for real; one block of each kind for real, the rest extrapolated; nothing is run."""
CARDS = (6, 8, 12, 16, 24, 48, 80)
"""Memory of graphics cards, GB."""
RESERVED = 1.0e9
"""Bytes that a driver's context, the allocator's gaps and work space are taken to need: an assumption."""
MARGIN = 1.1
"""Times an update's count: on pico bases a real update took up to 1.06 of it (tests/test_estimate.py)."""


@dataclass(frozen=True)
class Report:
    """What an estimate found. Bytes and seconds."""

    base: str
    family: str
    method: str
    rank: int
    targets: str
    resolution: int | str
    """Pixels, or WIDTHxHEIGHT."""
    batch_size: int
    """Noisy copies of the picture in an update."""
    dtype: str
    quantize: str
    gradient_checkpointing: bool
    device: str
    free: int
    """Bytes that the device had left before anything was run."""
    parameters: int
    """Of the trainable component."""
    layers: int
    """That an adapter sits on."""
    trained: Mapping[str, int]
    """{method: trainable parameters}."""
    files: Mapping[str, int]
    """{"full", "compact": bytes in bfloat16}."""
    weights: Mapping[str, int]
    """{dtype or quantisation: bytes of the trainable component}."""
    spare: Mapping[str, int]
    """{text encoder or VAE: bytes}; they wait in the CPU's memory while an adapter is trained."""
    buffers: int
    """Bytes of the trainable component's buffers and tables, of the picture's latents and of the prompt's condition."""
    opening: Mapping[str, int]
    """{"text encoders", "VAE": most bytes on the device, with MARGIN, while they encode the prompt and the picture},
    one after the other and before the trainable component is there."""
    drawing: Mapping[str, int]
    """{"denoising", "decoding": most bytes beside model and adapter, with MARGIN, while one picture is drawn}."""
    adapter: Mapping[str, int]
    """{method: bytes of A and B in float32, and of what is kept beside them}."""
    step: Mapping[str, Mapping[str, int]]
    """{method: {"kept", "recomputed": most bytes of activations, gradients and moments in an update}}, where
    activations are kept or recomputed (gradient_checkpointing)."""
    prompt_tokens: int | None = None
    """Of the prompt that is trained with, where prompts are not padded; None: the longest."""
    how: How = "count"
    """What was run."""
    why: str = ""
    """Why not the whole model, if that was left open."""
    stages: Mapping[str, Mapping[str, Stage]] = field(default_factory=dict)
    """{method: {"basis", "update", "merge", "denoising step": what it took}}: measured where `how` is "whole",
    extrapolated and without memory where it is "blocks"."""

    def counted(self, weights: str, activations: str, method: str) -> int:
        """Bytes of model, adapter and an update."""
        return self.weights[weights] + self.buffers + self.adapter[method] + self.step[method][activations]

    @property
    def chosen(self) -> tuple[str, str]:
        """(weights, activations) of the settings that were estimated."""
        return self.quantize or self.dtype, "recomputed" if self.gradient_checkpointing else "kept"

    def training(self, weights: str, activations: str, method: str) -> float:
        """Bytes of an update: model, adapter, activations with MARGIN, and what is RESERVED."""
        return self.counted(weights, activations, method) + (MARGIN - 1) * self.step[method][activations] + RESERVED

    def need(self, weights: str, activations: str, method: str) -> float:
        """The estimate's most bytes at any time of a training with a preview: opening, update, drawing."""
        stays = 3 * 4 * self.trained[method]  # gradients and Adam's moments, while a preview is drawn
        beside = self.weights[weights] + self.buffers + self.adapter[method] + stays
        others = max(beside + max(self.drawing.values()), *self.opening.values())
        return max(self.training(weights, activations, method), others + RESERVED)

    @property
    def short(self) -> str:
        """What the device lacks for the settings of this estimate, or ""."""
        need = max(self.need(*self.chosen, method) for method in self.step)
        if need <= self.free:
            return ""
        return f"it needs {need / 1e9:.3g} GB at most, {self.device} has {self.free / 1e9:.3g} GB free"

    def fits(self, weights: str, activations: str, method: str) -> int | None:
        """The smallest of CARDS, in GB, that is large enough; None: none of them."""
        return next((card for card in CARDS if self.need(weights, activations, method) <= card * 1e9), None)
