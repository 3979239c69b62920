"""Conditioning: what a backbone reads beside the noisy latents, such as encoded prompts, size and crop.

Letters: b batch, n tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Condition:
    """What a backbone reads beside the noisy latents: tensors by name, each (b, ...). Only its family reads them."""

    tensors: Mapping[str, Tensor]
    lengths: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """{name: tokens of each row} of texts (b, n, ...) whose rows differ in length; behind them are zeros."""

    @classmethod
    def of_texts(cls, texts: Mapping[str, Sequence[Tensor]]) -> Condition:
        """Conditioning of texts: {name: b tensors (n_k, ...)} side by side, padded to the longest of each name."""
        lengths = {name: tuple(map(len, rows)) for name, rows in texts.items()}
        padded = {name: nn.utils.rnn.pad_sequence([*rows], batch_first=True) for name, rows in texts.items()}
        return cls(padded, {name: x for name, x in lengths.items() if len({*x}) > 1})

    def texts(self, name: str) -> list[Tensor]:
        """b tensors (n_k, ...): a text without padding."""
        x = self.tensors[name]
        return [row[:length] for row, length in zip(x, self.lengths.get(name, (x.shape[1],) * len(x)), strict=True)]

    def mask(self, name: str) -> Tensor | None:
        """The attention mask of a text in the conditioning, (b, n) bool, True at its tokens and False at its padding;
        None: no row has any, and attention without a mask is exact and faster."""
        if name not in self.lengths:
            return None
        x = self.tensors[name]
        return torch.arange(x.shape[1], device=x.device) < torch.tensor(self.lengths[name], device=x.device)[:, None]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    @classmethod
    def joined(cls, conditions: Sequence[Condition]) -> Condition:
        """The rows of several conditionings, one after the other."""
        names = conditions[0].tensors
        ragged = {name for x in conditions for name in x.lengths}
        ragged |= {name for name in names if len({x.tensors[name].shape[1:] for x in conditions}) > 1}
        whole = {name: torch.cat([x.tensors[name] for x in conditions]) for name in names if name not in ragged}
        padded = cls.of_texts({name: [text for x in conditions for text in x.texts(name)] for name in ragged})
        tensors = {**whole, **padded.tensors}
        return cls({name: tensors[name] for name in names}, padded.lengths)

    def rows(self, index: Sequence[int] | Tensor) -> Condition:
        """The rows of the conditioning with these numbers, in this order; a number may come several times."""
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
