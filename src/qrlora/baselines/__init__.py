"""FUSIONS: ways from a content picture and a style picture to pictures of the thing in the style."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image

from ..adapter import Adapter
from ..families import Base
from ..merging import merge
from ..sampling import generate


@dataclass(frozen=True)
class Lesson:
    """One picture to learn from."""

    image: Path
    prompt: str


@dataclass(frozen=True)
class Task:
    """What a fusion is given."""

    base: Base
    content: Adapter
    style: Adapter | None
    content_lesson: Lesson
    style_lesson: Lesson
    weights: tuple[float, float] = (1.0, 1.0)
    seed: int = 0


@dataclass(frozen=True)
class Fused:
    """What it gives back."""

    draw: Callable[[Sequence[str], Sequence[int]], list[Image]]
    """(prompts, seeds) -> one picture each."""
    adapter: Adapter | None


@dataclass(frozen=True)
class Fusion:
    """One row of FUSIONS."""

    name: str
    paper: str
    learn: Mapping[str, Any]
    """Settings of `TrainConfig` that differ from the base's own."""
    fuse: Callable[[Task], Fused]
    families: tuple[str, ...] | None = None
    """None: all."""
    learns_style: bool = True


def _merged(rule: str) -> Callable[[Task], Fused]:
    def fuse(task: Task) -> Fused:
        assert task.style is not None
        adapter = merge([task.content, task.style], task.weights, rule)

        def draw(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image]:
            return generate(task.base, prompts, [(adapter, 1.0)], seed=seeds, check_triggers=False)

        return Fused(draw, adapter)

    return fuse


FUSIONS: dict[str, Fusion] = {
    fusion.name: fusion
    for fusion in (
        Fusion("qr", "arXiv 2507.04599", {"method": "qr"}, _merged("sum")),
        Fusion("qr-output", "arXiv 2507.04599, the authors' code", {"method": "qr-output"}, _merged("sum")),
        Fusion("lora", "arXiv 2106.09685, summed", {"method": "lora"}, _merged("stack")),
    )
}
