"""The shape of a family's record, and of what a backbone is told beside the latents.

Letters: b batch, h w latent height and width, c latent channels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..config import FamilyDefaults
from ..layouts import Layout


@dataclass(frozen=True)
class Condition:
    """What a backbone reads beside the noisy latents: tensors by name, each (b, ...). Only its family reads them."""

    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    @classmethod
    def joined(cls, parts: Sequence[Condition]) -> Condition:
        """The rows of all, one after the other."""
        return cls({name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors})

    def rows(self, index: Sequence[int] | Tensor) -> Condition:
        """The rows with these numbers, in this order; a number may come several times."""
        where = torch.as_tensor(index)
        return Condition({name: x[where.to(x.device)] for name, x in self.tensors.items()})

    def to(self, device: torch.device | str) -> Condition:
        """The same condition on another device."""
        return Condition({name: x.to(device) for name, x in self.tensors.items()})


@dataclass(frozen=True)
class Framing:
    """How a picture was cut to the base's size, in pixels; what SDXL calls its size conditions."""

    original: tuple[int, int]
    """(height, width) of the file."""
    corner: tuple[int, int]
    """(top, left) of the crop, after the picture was resized."""
    target: tuple[int, int]
    """(height, width) that the model sees."""

    @classmethod
    def plain(cls, height: int, width: int) -> Framing:
        """A picture that always had its size: what sampling asks for, in training and in pipelines."""
        return cls((height, width), (0, 0), (height, width))


class Tokens(NamedTuple):
    """The most words, or parts of words, of a prompt that a base's tokenizers take."""

    clip: int = 77
    t5: int = 512


@dataclass(frozen=True)
class Family:
    """A kind of backbone: facts and functions. No class derives from it."""

    layout: Layout
    """Its layers' names, its public models, and which part of the pipeline learns."""
    pipeline: str
    """Name of diffusers' pipeline class, which is also how a folder or hub name is recognised."""
    same_parts: tuple[str, ...]
    """Other pipeline classes of the same parts: their folders are opened as `pipeline`, which asks for words alone."""
    checkpoint_keys: tuple[str, ...]
    """Tensor names that only single-file checkpoints of this family hold all of, with or without the prefix
    `model.diffusion_model.`."""
    defaults: FamilyDefaults
    """The paper's settings."""
    text_parts: Mapping[str, str]
    """Components that are needed for prompts only -> how their tensors' names begin in single-file checkpoints."""
    encode_prompt: Callable[[Any, Sequence[str], Framing], Condition]
    """(pipe, b prompts, framing) -> Condition of b rows."""
    predict: Callable[[nn.Module, Tensor, Tensor, Condition], Tensor]
    """(model, noisy (b, c, h, w), time (b,), condition of b rows) -> prediction (b, c, h, w)."""
    embed: Callable[[Any, Sequence[str], str, float], Condition]
    """(pipe, b prompts, negative_prompt, guidance) -> what its pipeline is told in place of prompts, under the names of
    its arguments."""
    sample: Callable[..., Tensor]
    """(pipe, what `embed` found, size, steps, guidance, generators) -> latents (b, c, h, w) of one picture per row, as
    the backbone sees them; the pipe is without text encoders and VAE."""
    size_step: Callable[[Any], int]
    """(pipe) -> pixels that the sides of its pictures must be multiples of."""
    blocks: tuple[str, ...]
    """Class names of the blocks that nearly all weights and work of the trainable part are in."""
    shapes: Callable[[Any, int, Tokens], Mapping[str, tuple[int, ...]]]
    """(pipe, side of the latents, tokens that its tokenizers take) -> the shape of one row of "latents" and of each
    tensor of the condition."""
    widths: Callable[[Any], Mapping[str, int]]
    """(pipe with its text encoders) -> the last sizes of "text" and "pooled" as they make them of a prompt."""
    reads: Mapping[str, Any] = field(default_factory=dict)
    """Entries of the trainable part's configuration that say what it is told, with what they must be."""
    rows_drawn: Callable[[Any, float], int] = lambda pipe, guidance: 2 if guidance > 1 else 1
    """(pipe, guidance) -> rows that the model answers in a denoising step of one picture: two if the guidance is
    classifier-free guidance and acts."""
    optional_parts: tuple[str, ...] = ()
    """Components that a base may lack from the start."""
    exceptions: Callable[[Any], Mapping[str, Any]] = lambda pipe: {}
    """(pipe) -> defaults in which this base differs from its family's."""
    respelt: Callable[[str], str] = lambda name: name
    """A tensor's name in a single file -> as diffusers' conversion spells it."""
    told_by: Callable[[Collection[str], Mapping[str, str]], Mapping[str, Any]] = lambda names, metadata: {}
    """(names of a single file's tensors, its metadata) -> what it says of its training, as a scheduler's entries."""

    @property
    def name(self) -> str:
        """The word in headers: "sdxl"."""
        return self.layout.family

    @property
    def part(self) -> str:
        """The pipeline's trainable part: "unet" or "transformer"."""
        return self.layout.part

    @property
    def targets(self) -> Mapping[str, tuple[str, ...]]:
        """Preset -> endings of layer names."""
        return self.layout.targets
