"""FUSIONS: every way to bring a content and a style together, the paper's and those that it is compared with."""

from __future__ import annotations

from collections.abc import Callable

from ..merging import merge
from .record import Fused, Fusion, Lesson, Task, static

__all__ = ["FUSIONS", "Fused", "Fusion", "Lesson", "Task"]


def merged(rule: str) -> Callable[[Task], Fused]:
    """Task -> the merge of both adapters at the task's weights by a row of merging.RULES."""
    return lambda task: static(task.base, merge(task.both, task.weights, rule))


FUSIONS: dict[str, Fusion] = {
    fusion.name: fusion
    for fusion in (
        Fusion("qr", "arXiv 2507.04599, eq. 5-7", {"method": "qr"}, merged("sum")),
        Fusion("qr-output", "arXiv 2507.04599, the authors' code", {"method": "qr-output"}, merged("sum")),
        Fusion("lora", "arXiv 2106.09685, the direct merge", {"method": "lora"}, merged("stack")),
    )
}
