"""FusionMethod: a way to fuse content and style, with its inputs, its result and its adapters' training settings."""

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
    """The image file and the prompt that an adapter was trained on."""

    image: Path
    prompt: str


@dataclass(frozen=True)
class FusionInputs:
    """The inputs of a fusion method."""

    base: Base
    content: Adapter
    style: Adapter | None
    """None: the method has no style adapter, see `FusionMethod.trains_style_adapter`."""
    content_image: TrainingImage
    style_image: TrainingImage
    weights: tuple[float, float] = (1.0, 1.0)
    """The strengths of content and style."""
    seed: int = 0
    """Seed of the method's own random numbers."""

    @property
    def both(self) -> list[Adapter]:
        """The two adapters that a fusion method combines. Raises ValueError: there is no style adapter."""
        if self.style is None:
            raise ValueError("this fusion needs a content and a style adapter, and got no style adapter")
        return [self.content, self.style]


@dataclass(frozen=True)
class FusionResult:
    """A fused content and style, ready to sample from."""

    draw: Callable[[Sequence[str], Sequence[int]], list[Any]]
    """(prompts, seeds) -> one PIL image each; leaves the base as it was."""
    adapter: Adapter | None
    """The merged adapter, where the result is static."""


@dataclass(frozen=True)
class FusionMethod:
    """One row of FUSIONS."""

    name: str
    paper: str
    """Where it comes from."""
    learn: Mapping[str, Any]
    """Settings of TrainConfig by which both adapters are trained; a table "content" or "style" is for that role."""
    fuse: Callable[[FusionInputs], FusionResult]
    """FusionInputs -> FusionResult.  Raises ValueError: a base or adapters that it does not support."""
    families: tuple[str, ...] | None = None
    """Families of bases that it supports; None: all."""
    trains_style_adapter: bool = True
    """False: the style comes from the style image itself, and `FusionInputs.style` is None."""

    def settings(self, role: str) -> dict[str, Any]:
        """The settings of TrainConfig for one role."""
        common = {name: value for name, value in self.learn.items() if name not in ("content", "style")}
        return {**common, "role": role, **self.learn.get(role, {})}


def sample_with_adapter(base: Base, adapter: Adapter) -> FusionResult:
    """The result of a fusion method that merges: samples with the merged adapter at strength 1."""
    return FusionResult(
        lambda prompts, seeds: generate(base, list(prompts), [(adapter, 1.0)], seed=list(seeds)), adapter
    )


def check_family(name: str, families: Sequence[str], base: Base) -> None:
    """Raises ValueError: a fusion method does not support this base's family."""
    if base.family.name not in families:
        raise ValueError(f"{name} exists for {', '.join(families)} only, and {base.name} is of {base.family.name}")
