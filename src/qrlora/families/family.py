"""The record of a family of backbones, and its conditioning: what a backbone reads beside the latents.

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
    lengths: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """{name: tokens of each row} of texts (b, n, ...) whose rows differ in length; behind them are zeros."""

    @classmethod
    def of_texts(cls, texts: Mapping[str, Sequence[Tensor]]) -> Condition:
        """{name: b tensors (n_k, ...)} side by side, padded to the longest of each name."""
        lengths = {name: tuple(map(len, rows)) for name, rows in texts.items()}
        padded = {name: nn.utils.rnn.pad_sequence([*rows], batch_first=True) for name, rows in texts.items()}
        return cls(padded, {name: x for name, x in lengths.items() if len({*x}) > 1})

    def texts(self, name: str) -> list[Tensor]:
        """b tensors (n_k, ...): a text without padding."""
        x = self.tensors[name]
        return [row[:length] for row, length in zip(x, self.lengths.get(name, (x.shape[1],) * len(x)), strict=True)]

    def mask(self, name: str) -> Tensor | None:
        """(b, n) bool, True at the tokens of a text and False at its padding; None: no row has any, and attention
        without a mask is exact and faster."""
        if name not in self.lengths:
            return None
        x = self.tensors[name]
        return torch.arange(x.shape[1], device=x.device) < torch.tensor(self.lengths[name], device=x.device)[:, None]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    @classmethod
    def joined(cls, conditions: Sequence[Condition]) -> Condition:
        """The rows of all conditions, one after the other."""
        names = conditions[0].tensors
        ragged = {name for x in conditions for name in x.lengths}
        ragged |= {name for name in names if len({x.tensors[name].shape[1:] for x in conditions}) > 1}
        whole = {name: torch.cat([x.tensors[name] for x in conditions]) for name in names if name not in ragged}
        padded = cls.of_texts({name: [text for x in conditions for text in x.texts(name)] for name in ragged})
        tensors = {**whole, **padded.tensors}
        return cls({name: tensors[name] for name in names}, padded.lengths)

    def rows(self, index: Sequence[int] | Tensor) -> Condition:
        """The rows with these numbers, in this order; a number may come several times."""
        where = torch.as_tensor(index)
        found = {name: x[where.to(x.device)] for name, x in self.tensors.items()}
        if not self.lengths:
            return Condition(found)
        kept = {name: tuple(x[k] for k in where.tolist()) for name, x in self.lengths.items()}
        found |= {
            name: found[name][:, : max(x, default=0)] for name, x in kept.items()
        }  # as if encoded without the rest
        return Condition(found, {name: x for name, x in kept.items() if len({*x}) > 1})

    def to(self, device: torch.device | str) -> Condition:
        """The same condition on another device."""
        return Condition({name: x.to(device) for name, x in self.tensors.items()}, self.lengths)


@dataclass(frozen=True)
class SizeConditioning:
    """Size and crop conditioning (SDXL, arXiv 2307.01952, 2.2): how an image was resized and cropped, in pixels."""

    original_size: tuple[int, int]
    """(height, width) of the file."""
    crop_top_left: tuple[int, int]
    """(top, left) of the crop, after the image was resized."""
    target_size: tuple[int, int]
    """(height, width) that the model sees."""

    @classmethod
    def uncropped(cls, height: int, width: int) -> SizeConditioning:
        """Of an image that was neither resized nor cropped: what sampling asks for, in training and in pipelines."""
        return cls((height, width), (0, 0), (height, width))


class TokenLimits(NamedTuple):
    """The longest prompt that a base's tokenizers take, in tokens."""

    clip: int = 77
    t5: int = 512


@dataclass(frozen=True)
class Family:
    """A kind of backbone: facts and functions. No class derives from it."""

    layout: Layout
    """Its layers' names, its public models, and which component of the pipeline is trained."""
    pipeline: str
    """Name of diffusers' pipeline class, which is also how a folder or hub name is recognised."""
    compatible_pipelines: tuple[str, ...]
    """Other pipeline classes with the same components: their folders are opened as `pipeline`, for text to image."""
    checkpoint_keys: tuple[str, ...]
    """Tensor names that only single-file checkpoints of this family hold all of, with or without the prefix
    `model.diffusion_model.`."""
    defaults: FamilyDefaults
    """The paper's settings."""
    text_encoders: Mapping[str, str]
    """Components that are needed for prompts only -> how their tensors' names begin in single-file checkpoints."""
    encode_prompt: Callable[[Any, Sequence[str], SizeConditioning], Condition]
    """(pipe, b prompts, their images' size and crop conditioning) -> Condition of b rows, as `predict` reads it."""
    predict: Callable[[nn.Module, Tensor, Tensor, Condition], Tensor]
    """(model, noisy (b, c, h, w), time (b,), condition of b rows) -> prediction (b, c, h, w)."""
    embed: Callable[[Any, Sequence[str], str, float], Condition]
    """(pipe, b prompts, negative_prompt, guidance) -> what its pipeline takes in place of prompts, by
    argument."""
    sample: Callable[..., Tensor]
    """(pipe, what `embed` returned, `ImageSize`, steps, guidance, generators) -> latents (b, c, h, w) of one image per
    row, as the backbone sees them; the pipe is without text encoders and VAE."""
    size_multiple: Callable[[Any], int]
    """(pipe) -> pixels that the sides of its images must be multiples of."""
    block_classes: tuple[str, ...]
    """Class names of the blocks that hold nearly all weights and work of the trainable component are in."""
    input_shapes: Callable[[Any, int | tuple[int, int], TokenLimits], Mapping[str, tuple[int, ...]]]
    """(pipe, side of the latents or their (height, width), tokens that its tokenizers take) -> the shape of one row of
    "latents" and of each tensor of the condition."""
    text_widths: Callable[[Any], Mapping[str, int]]
    """(pipe with its text encoders) -> the last dimensions of the "text" and "pooled" embeddings they compute."""
    other_pipelines: tuple[str, ...] = ()
    """Pipeline classes of other components for text to image, which a folder is opened as if its index names them."""
    required_config: Mapping[str, Any] = field(default_factory=dict)
    """Entries of the trainable component's config that would mean another model input -> the values they must have."""
    required_index: Mapping[str, Any] = field(default_factory=dict)
    """Entries of model_index.json that would mean another pipeline -> the values they must have."""
    frames_per_latent: Callable[[Any], int] | None = None
    """(pipe) -> frames of a video, after the first, that one frame of the latents holds; `sample` then takes `frames`,
    too. None: it draws images alone."""
    rows_per_step: Callable[[Any, float], int] = lambda pipe, guidance: 2 if guidance > 1 else 1
    """(pipe, guidance) -> rows that the model predicts in a denoising step of one image: two where
    classifier-free guidance acts."""
    optional_components: tuple[str, ...] = ()
    """Components that a base may lack from the start."""
    default_overrides: Callable[[Any], Mapping[str, Any]] = lambda pipe: {}
    """(pipe) -> defaults in which this base differs from its family's."""
    distilled_from: Callable[[Any], str] = lambda pipe: ""
    """(pipe) -> the public model to train on in place of this one, which is distilled to few steps; "": it is not."""
    flattened: tuple[str, ...] = ()
    """Endings of the layers that read the tokens of all images of a batch as one row: with adapters of different
    strengths on them, images are drawn one by one."""
    time_rises: bool = False
    """Whether the model's own time rises while noise falls."""
    beside_a_folder: bool = False
    """Whether a single file, which then holds the trainable component alone, needs the folder of a whole pipeline
    beside it: diffusers would take its configuration from another public model."""
    normalize_key: Callable[[str], str] = lambda name: name
    """A tensor's name in a single file -> the key that diffusers' conversion knows it by."""
    scheduler_entries: Callable[[Collection[str], Mapping[str, str]], Mapping[str, Any]] = lambda names, metadata: {}
    """(names of a single file's tensors, its metadata) -> what they say of its training, as entries of a
    scheduler's config."""

    @property
    def name(self) -> str:
        """The word in headers: "sdxl"."""
        return self.layout.family

    @property
    def component(self) -> str:
        """The pipeline's trainable component: "unet" or "transformer"."""
        return self.layout.component

    @property
    def targets(self) -> Mapping[str, tuple[str, ...]]:
        """Preset -> endings of layer names."""
        return self.layout.targets
