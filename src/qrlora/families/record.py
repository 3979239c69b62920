"""The shape of a family's record, of a base model that is open, and of what a backbone is told beside the latents.

Letters: b batch, h w latent height and width, c latent channels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..adapter import linear_layers
from ..basis import Weights
from ..config import FamilyDefaults
from ..noise import Noising, noising_of
from .stock import decode_image, encode_image


@dataclass(frozen=True)
class Condition:
    """What a backbone reads beside the noisy latents: tensors by name, each (b, ...). Only its family reads them."""

    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

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

    name: str
    """The word in headers: "sdxl"."""
    part: str
    """The pipeline's trainable part: "unet" or "transformer"."""
    pipeline: str
    """Name of diffusers' pipeline class, which is also how a folder or hub name is recognised."""
    same_parts: tuple[str, ...]
    """Other pipeline classes of the same parts: their folders are opened as `pipeline`, which asks for words alone."""
    checkpoint_keys: tuple[str, ...]
    """Tensor names that only single-file checkpoints of this family hold all of, with or without the prefix
    `model.diffusion_model.`."""
    targets: Mapping[str, tuple[str, ...]]
    """Preset -> endings of layer names."""
    defaults: FamilyDefaults
    """The paper's settings."""
    text_parts: Mapping[str, str]
    """Components that are needed for prompts only -> how their tensors' names begin in single-file checkpoints."""
    encode_prompt: Callable[[Any, Sequence[str], Framing], Condition]
    """(pipe, b prompts, framing) -> Condition of b rows."""
    predict: Callable[[nn.Module, Tensor, Tensor, Condition], Tensor]
    """(model, noisy (b, c, h, w), time (b,), condition of b rows) -> prediction (b, c, h, w)."""
    sample: Callable[..., Tensor]
    """(pipe, prompts, negative_prompt, size, steps, guidance, generators) -> latents (b, c, h, w) of one picture per
    prompt, as the backbone sees them."""
    size_step: Callable[[Any], int]
    """(pipe) -> pixels that the sides of its pictures must be multiples of."""
    blocks: tuple[str, ...]
    """Class names of the blocks that nearly all weights and work of the trainable part are in."""
    shapes: Callable[[Any, int, Tokens], Mapping[str, tuple[int, ...]]]
    """(pipe, side of the latents, tokens that its tokenizers take) -> the shape of one row of "latents" and of each
    tensor of the condition."""
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


@dataclass
class Base:
    """A base model that is open: a stock diffusers pipeline with its family beside it."""

    pipe: Any
    """The stock pipeline."""
    family: Family
    name: str
    """As the user gave it."""
    defaults: FamilyDefaults
    """The family's, with those of the base's own `qrlora.json` on top."""
    plain_framing: bool = False
    """True: training, too, tells the model that its picture was never resized or cropped. Bases that have only ever
    seen one size say so in `qrlora.json`; other sizes would be foreign to them."""
    original: Callable[[str], Tensor] | None = None
    """(layer) -> its weight (o, i) in the checkpoint, where the trainable part holds it quantised; None: nowhere."""
    home: torch.device | None = None
    """Offload: where a part goes for its turn; between turns all wait on the CPU. None: all stay on one device."""

    @property
    def model(self) -> nn.Module:
        """The trainable part."""
        return getattr(self.pipe, self.family.part)

    @property
    def device(self) -> torch.device:
        """Where the trainable part lives."""
        return next(self.model.parameters()).device

    @property
    def size_step(self) -> int:
        """Sides of pictures are multiples of so many pixels."""
        return self.family.size_step(self.pipe)

    @property
    def noising(self) -> Noising:
        """The base's noising process, every time weighing the same."""
        return noising_of(self.pipe.scheduler.config)

    def check_side(self, name: str, pixels: int) -> None:
        """Raises ValueError with the nearest good value: no side that this base's pictures can have."""
        step = self.size_step
        if pixels < 1 or pixels % step:
            nearest = max(step, round(pixels / step) * step)
            raise ValueError(f"{name} must be a multiple of {step} pixels for {self.name}, got {pixels}: try {nearest}")

    @property
    def missing_parts(self) -> list[str]:
        """Text encoders and VAE that the base should have and has not; after `release` all of them."""
        names = (n for n in (*self.family.text_parts, "vae") if n not in self.family.optional_parts)
        return [name for name in names if getattr(self.pipe, name, None) is None]

    def target_layers(self, targets: str) -> dict[str, nn.Linear]:
        """{name: layer} of the linear layers that an adapter may sit on, in the model's order.

        Args:    targets: a preset of the family, or dotted name endings with commas between: "attn1.to_q,to_v".
                 Endings match whole dotted parts: "to_q" does not match "add_to_q".
        Raises:  ValueError: an ending that matches no linear layer.
        """
        endings = self.family.targets.get(targets) or tuple(x.strip() for x in targets.split(",") if x.strip())
        presets = f"presets of targets: {', '.join(self.family.targets)}"
        if not endings:
            raise ValueError(f"no targets given; {presets}")
        try:
            return linear_layers(self.model, endings)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}; {presets}") from error

    def weights(self, targets: str) -> Weights:
        """(layer, weight (o, i)) of every target layer, one at a time, on the trainable part's device.

        Of a quantised base they are the original ones, read from the checkpoint as it stores them.
        """
        layers = self.target_layers(targets)
        shapes = {name: (layer.out_features, layer.in_features) for name, layer in layers.items()}
        if self.original is None:
            return Weights(shapes, lambda name: layers[name].weight.detach())
        original = self.original
        return Weights(shapes, lambda name: original(name).to(self.device))

    def weight(self, layer: str) -> Tensor:
        """The weight (o, i) of one layer, as `weights` reads it. Raises ValueError: there is no such layer."""
        if layer not in self.target_layers(layer):
            raise ValueError(f"{self.name} has no linear layer {layer!r}: the adapter belongs to another base")
        return self.weights(layer).read(layer)

    def framing(self, original: tuple[int, int], corner: tuple[int, int], target: tuple[int, int]) -> Framing:
        """How a picture was cut, as this base is told: see `Framing` and `plain_framing`."""
        return Framing.plain(*target) if self.plain_framing else Framing(original, corner, target)

    def encode_prompt(self, prompts: Sequence[str], framing: Framing) -> Condition:
        """Condition of b prompts for pictures with this framing; no gradient."""
        with torch.no_grad():
            return self.family.encode_prompt(self.pipe, prompts, framing)

    def encode_image(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents (b, c, h, w) of pixels (b, 3, H, W) in -1..1, as `stock.encode_image`; no gradient."""
        with torch.no_grad():
            return encode_image(self.pipe, pixels.to(self.device), generator)

    def decode_image(self, latents: Tensor) -> list[Any]:
        """One PIL picture for each of the latents (b, c, h, w), as `stock.decode_image`; no gradient."""
        with torch.no_grad():
            return decode_image(self.pipe, latents)

    @property
    def spare_parts(self) -> dict[str, nn.Module]:
        """The components that training does not need once latents and conditions are there: text encoders and VAE."""
        names = (*self.family.text_parts, "vae")
        return {name: part for name in names if (part := getattr(self.pipe, name, None)) is not None}

    def release(self) -> None:
        """Forget text encoders and VAE, and with them their memory. Such a base can train but no longer sample."""
        for name in self.spare_parts:
            setattr(self.pipe, name, None)

    def park(self) -> None:
        """The base makes room to train: text encoders and VAE wait in the CPU's memory, the model is on its device."""
        for part in self.spare_parts.values():
            part.to("cpu")
        if self.home is not None:
            self.model.to(self.home)

    def unpark(self) -> None:
        """All parts are on one device again: the model's, or with offload the CPU."""
        if self.home is not None:
            self.model.to("cpu")
        for part in self.spare_parts.values():
            part.to(self.device)

    def sample(
        self,
        prompts: Sequence[str],
        negative_prompt: str,
        size: int,
        steps: int,
        guidance: float,
        generators: Sequence[torch.Generator],
    ) -> list[Any]:
        """One PIL picture of size x size pixels per prompt, by the stock pipeline; no gradient.

        Raises: ValueError: NaN or infinity, which would be black pictures.
        """
        with torch.no_grad(), self._taking_turns():
            latents = self.family.sample(self.pipe, prompts, negative_prompt, size, steps, guidance, generators)
            self._refuse_nan(latents)
            return self.decode_image(latents)

    def _refuse_nan(self, latents: Tensor) -> None:
        """Raises ValueError, with the cure: NaN or infinity was drawn."""
        if bool(torch.isfinite(latents).all()):
            return
        numbers = {x.dtype for part in (self.model, *self.spare_parts.values()) for x in part.parameters()}
        half = torch.float16 in numbers or torch.bfloat16 in numbers
        cure = "--dtype float32, or bfloat16 if it was float16" if half else "smaller strengths, or less guidance"
        raise ValueError(f"{self.name} drew NaN or infinity, which would be a black picture: try {cure}")

    @contextlib.contextmanager
    def _taking_turns(self) -> Iterator[None]:
        """With offload, each part enters the device when it is called and leaves it for the next one."""
        if self.home is None:
            yield
            return
        self.pipe.enable_model_cpu_offload(device=self.home)
        try:
            yield
        finally:
            self.pipe.remove_all_hooks()
            self.pipe.to("cpu")
