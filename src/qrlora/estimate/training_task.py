"""The training that is estimated, and what each stage of it takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..config import TrainConfig
from ..families import Base
from ..families.base_without_weights import blank_example
from ..families.family import TokenLimits
from ..image_size import height_and_width


@dataclass(frozen=True)
class TrainingTask:
    """A training's settings, and its base without weights."""

    base: Base
    tokens: TokenLimits
    config: TrainConfig
    """Without None. Its picture and output are not read."""
    prompt_tokens: int | None = None
    """Of the prompt that is trained with, where the base's prompts are not padded; None: the longest."""

    @property
    def rank(self) -> int:
        assert self.config.rank is not None
        return self.config.rank

    @property
    def targets(self) -> str:
        assert self.config.targets is not None
        return self.config.targets

    @property
    def batch_size(self) -> int:
        assert self.config.batch_size is not None
        return self.config.batch_size

    @property
    def latent_size(self) -> tuple[int, int]:
        """(height, width) of the latents in the training that is estimated."""
        assert self.config.resolution is not None
        height, width = height_and_width(self.config.resolution)
        return height // self.base.pixels_per_latent, width // self.base.pixels_per_latent

    def with_method(self, method: str) -> TrainingTask:
        """The same with another method: rank, layers and all else stay."""
        return replace(self, config=replace(self.config, method=method))

    def example(self, rows: int, device: torch.device | str, prompt_tokens: int | None = None) -> tuple[Tensor, Any]:
        """As `blank_example`, at the resolution of the training; with a prompt of its length, or of this one."""
        assert self.config.resolution is not None
        longest = self.tokens.unpadded
        tokens = self.tokens._replace(unpadded=min(prompt_tokens or self.prompt_tokens or longest, longest))
        return blank_example(self.base, self.config.resolution, tokens, rows, device)


@dataclass(frozen=True)
class Stage:
    """What one stage takes."""

    seconds: float
    peak: int | None = None
    """Most bytes in use at once, beyond those before the model was there; None: not measured."""
