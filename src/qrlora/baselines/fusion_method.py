"""The shape of a fusion: what it may read, what it gives back, and how its two adapters are learnt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapter import Adapter
from ..families import Base
from ..sampling import generate


@dataclass(frozen=True)
class TrainingImage:
    """What an adapter was learnt from."""

    image: Path
    prompt: str


@dataclass(frozen=True)
class FusionInputs:
    """All that a fusion may read."""

    base: Base
    content: Adapter
    style: Adapter | None
    """None: the fusion learns no style, see `FusionMethod.learns_style`."""
    content_lesson: TrainingImage
    style_lesson: TrainingImage
    weights: tuple[float, float] = (1.0, 1.0)
    """The strengths of content and style."""
    seed: int = 0
    """Of what the fusion itself draws at random."""

    @property
    def both(self) -> list[Adapter]:
        """The two adapters. Raises ValueError: there is no style adapter."""
        if self.style is None:
            raise ValueError("this fusion needs a content and a style adapter, and got no style adapter")
        return [self.content, self.style]


@dataclass(frozen=True)
class FusionResult:
    """A content and a style, brought together."""

    draw: Callable[[Sequence[str], Sequence[int]], list[Any]]
    """(prompts, seeds) -> one PIL picture each; leaves the base as it was."""
    adapter: Adapter | None
    """The merged adapter, where the result is static."""


@dataclass(frozen=True)
class FusionMethod:
    """One row of FUSIONS."""

    name: str
    paper: str
    """Where it comes from."""
    learn: Mapping[str, Any]
    """Settings of TrainConfig by which both adapters are learnt; a table "content" or "style" is for that role."""
    fuse: Callable[[FusionInputs], FusionResult]
    """Task -> Fused.  Raises ValueError: a base or adapters that it cannot work with."""
    families: tuple[str, ...] | None = None
    """Families of bases that it works on; None: all."""
    learns_style: bool = True
    """False: the style is read from the style picture itself, and `FusionInputs.style` is None."""

    def settings(self, role: str) -> dict[str, Any]:
        """The settings of TrainConfig for one role."""
        common = {name: value for name, value in self.learn.items() if name not in ("content", "style")}
        return {**common, "role": role, **self.learn.get(role, {})}


def static(base: Base, adapter: Adapter) -> FusionResult:
    """A merged adapter, drawn at strength 1."""
    return FusionResult(
        lambda prompts, seeds: generate(base, list(prompts), [(adapter, 1.0)], seed=list(seeds)), adapter
    )


def only(name: str, families: Sequence[str], base: Base) -> None:
    """Raises ValueError: a fusion does not work on bases of this one's family."""
    if base.family.name not in families:
        raise ValueError(f"{name} exists for {', '.join(families)} only, and {base.name} is of {base.family.name}")
