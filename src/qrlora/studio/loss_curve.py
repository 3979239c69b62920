"""The loss of a run as points of a plot: every update faint, the running mean on top."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

WIDTH, HEIGHT = 640, 200
"""Of the plot, in its own units."""
POINTS = 400
"""At most so many are drawn."""
SMOOTH = 0.1
"""Share of the run over which the running mean forgets."""


def loss_curve(losses: Mapping[int, float]) -> dict[str, Any] | None:
    """{"points", "mean": SVG points, "low", "high": losses, "last": step}; None with fewer than two losses."""
    steps = sorted(losses)
    if len(steps) < 2:
        return None
    values = [losses[step] for step in steps]
    weight = 1 / max(1.0, SMOOTH * len(steps))
    means, mean = [], values[0]
    for value in values:
        mean += weight * (value - mean)
        means.append(mean)
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    every = math.ceil(len(steps) / POINTS)

    def points(numbers: list[float]) -> str:
        """The losses as the points of an SVG polyline."""
        places = [
            (WIDTH * (step - steps[0]) / (steps[-1] - steps[0]), HEIGHT * (1 - (x - low) / span))
            for step, x in zip(steps, numbers, strict=True)
        ]
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in [*places[:-1:every], places[-1]])

    limits = {"low": low, "high": high, "first": steps[0], "last": steps[-1], "now": means[-1]}
    return {"points": points(values), "mean": points(means), "width": WIDTH, "height": HEIGHT, **limits}
