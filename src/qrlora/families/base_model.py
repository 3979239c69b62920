"""A base model that is open: what it can be asked, and which of its parts is on the device when.

Letters: b batch, h w latent height and width, c latent channels, o outputs, i inputs.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..adapter import linear_layers
from ..basis import Weights
from ..config import FamilyDefaults
from ..layouts import current_preset
from ..noising import Noising, noising_of
from .family import Condition, Family, Framing
from .pipeline_steps import decode_image, encode_image

T = TypeVar("T")
AT_ONCE = 8
"""Prompts that text encoders read together."""


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
    """Where a part goes for its turn; None: nothing is moved. Text encoders and VAE wait on the CPU between their
    turns, so that what is not at work takes no memory of a GPU."""
    offload: bool = False
    """Whether the trainable part, too, waits on the CPU; else it stays on the device once its first turn has come."""

    @property
    def model(self) -> nn.Module:
        """The trainable part."""
        return getattr(self.pipe, self.family.part)

    @property
    def device(self) -> torch.device:
        """Where each part works."""
        return self.home or next(self.model.parameters()).device

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
        targets = current_preset(targets)
        endings = self.family.targets.get(targets) or tuple(x.strip() for x in targets.split(",") if x.strip())
        presets = f"presets of targets: {', '.join(self.family.targets)}"
        if not endings:
            raise ValueError(f"no targets given; {presets}")
        try:
            return linear_layers(self.model, endings)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}; {presets}") from error

    def weights(self, targets: str) -> Weights:
        """(layer, weight (o, i)) of every target layer, one at a time, on the device.

        Of a quantised base they are the original ones, read from the checkpoint as it stores them.
        """
        layers = self.target_layers(targets)
        shapes = {name: (layer.out_features, layer.in_features) for name, layer in layers.items()}
        if self.original is None:
            return Weights(shapes, lambda name: layers[name].weight.detach().to(self.device))
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
        return self._told(prompts, lambda some: self.family.encode_prompt(self.pipe, some, framing))

    def encode_prompts(self, prompts: Sequence[str], framings: Sequence[Framing]) -> Condition:
        """Conditioning of b prompts, each with the size and crop of an image of its own; no gradient."""
        if len(set(framings)) == 1:
            return self.encode_prompt(prompts, framings[0])
        pairs = list(zip(prompts, framings, strict=True))
        once = list(dict.fromkeys(pairs))

        def encode() -> Condition:
            return Condition.joined([self.family.encode_prompt(self.pipe, [prompt], own) for prompt, own in once])

        found = self._in_turn([*self.family.text_parts], encode)
        return found if once == pairs else found.rows([once.index(pair) for pair in pairs])

    def embed(self, prompts: Sequence[str], negative_prompt: str, guidance: float) -> Condition:
        """What `denoise` is told of b prompts; no gradient."""
        return self._told(prompts, lambda some: self.family.embed(self.pipe, some, negative_prompt, guidance))

    def _told(self, prompts: Sequence[str], encode: Callable[[list[str]], Condition]) -> Condition:
        """Each prompt is encoded once, AT_ONCE together: dozens at once would fill more memory than an update."""
        once = list(dict.fromkeys(prompts))
        parts = [once[k : k + AT_ONCE] for k in range(0, len(once), AT_ONCE)]
        found = self._in_turn([*self.family.text_parts], lambda: Condition.joined([encode(part) for part in parts]))
        return found if once == list(prompts) else found.rows([once.index(prompt) for prompt in prompts])

    def encode_image(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents (b, c, h, w) of pixels (b, 3, H, W) in -1..1, as `stock.encode_image`; no gradient."""
        return self._in_turn(["vae"], lambda: encode_image(self.pipe, pixels.to(self.device), generator))

    def decode_image(self, latents: Tensor) -> list[Any]:
        """One PIL picture for each of the latents (b, c, h, w), as `stock.decode_image`; no gradient."""
        return self._in_turn(["vae"], lambda: decode_image(self.pipe, latents.to(self.device)))

    def denoise(
        self, told: Condition, size: int, steps: int, guidance: float, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """Latents (b, c, h, w) of one picture of size x size pixels for each row of what `embed` found, by the stock
        pipeline; no gradient. The guidance is the one that `embed` was told.

        Raises: ValueError: NaN or infinity, which would be black pictures.
        """
        hidden = self.spare_parts
        with torch.no_grad(), self.on_device():
            self.release()  # a pipeline is where its first part is
            try:
                latents = self.family.sample(self.pipe, told.to(self.device), size, steps, guidance, generators)
            finally:
                for name, part in hidden.items():
                    setattr(self.pipe, name, part)
        self._refuse_nan(latents)
        return latents

    def _refuse_nan(self, latents: Tensor) -> None:
        """Raises ValueError, with the cure: NaN or infinity was drawn."""
        if bool(torch.isfinite(latents).all()):
            return
        numbers = {x.dtype for part in (self.model, *self.spare_parts.values()) for x in part.parameters()}
        half = torch.float16 in numbers or torch.bfloat16 in numbers
        cure = "--dtype float32, or bfloat16 if it was float16" if half else "smaller strengths, or less guidance"
        raise ValueError(f"{self.name} drew NaN or infinity, which would be a black picture: try {cure}")

    @property
    def spare_parts(self) -> dict[str, nn.Module]:
        """The components that training does not need once latents and conditions are there: text encoders and VAE."""
        names = (*self.family.text_parts, "vae")
        return {name: part for name in names if (part := getattr(self.pipe, name, None)) is not None}

    def release(self, keep: Sequence[str] = ()) -> None:
        """Forget text encoders and VAE, and with them their memory, but for those to keep. Such a base can train, but
        no longer sample."""
        for name in self.spare_parts:
            if name not in keep:
                setattr(self.pipe, name, None)

    def sample(
        self,
        prompts: Sequence[str],
        negative_prompt: str,
        size: int,
        steps: int,
        guidance: float,
        generators: Sequence[torch.Generator],
    ) -> list[Any]:
        """One PIL picture of size x size pixels per prompt: text encoders, trainable part and VAE in turn."""
        told = self.embed(prompts, negative_prompt, guidance)
        return self.decode_image(self.denoise(told, size, steps, guidance, generators))

    @contextlib.contextmanager
    def on_device(self) -> Iterator[None]:
        """The trainable part is on the device for the length of a `with`; without offload it stays there."""
        with moved([self.model], self.home, stay=not self.offload):
            yield

    def _in_turn(self, names: Sequence[str], work: Callable[[], T]) -> T:
        """work() with these parts on the device, without gradients.

        With offload the trainable part makes room for them, if it is there; without, only where a GPU's memory runs
        out: then it is done once more.
        """
        parts = [part for name in names if (part := getattr(self.pipe, name, None)) is not None]
        with torch.no_grad():
            if not self.offload:
                try:
                    with moved(parts, self.home):
                        return work()
                except torch.cuda.OutOfMemoryError:
                    if next(self.model.parameters()).device.type != "cuda":
                        raise
                busy = " and ".join(names)
                warnings.warn(
                    f"memory ran out: the {self.family.part} waits on the CPU while {busy} work, as offload=true does",
                    stacklevel=3,
                )
            aside = torch.device("cpu") if self.home else None
            with moved([self.model], aside), moved(parts, self.home):
                return work()


@contextlib.contextmanager
def moved(parts: Sequence[nn.Module], device: torch.device | None, stay: bool = False) -> Iterator[None]:
    """Modules on a device (None: where they are) for the length of a `with`. Then each goes back to where it was, also
    after a failure half-way; those that are to stay only then."""
    places = [] if device is None else [(part, next(part.parameters()).device) for part in parts]
    before = [(part, place) for part, place in places if place != device]
    try:
        for part, _ in before:
            part.to(device)
    except BaseException:
        for part, place in before:
            part.to(place)
        raise
    try:
        yield
    finally:
        for part, place in [] if stay else before:
            part.to(place)
