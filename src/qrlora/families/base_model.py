"""A base model that is open: encoding, denoising and decoding, and which component is on the execution device when.

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
from ..image_size import ImageSize, height_and_width, parse_image_size
from ..layouts import current_preset
from ..noising import Noising, noising_of
from .captions import as_caption
from .component_placement import components_on_device
from .condition import Condition, SizeConditioning
from .family import Family
from .pipeline_steps import decode_frames, decode_image, encode_image

T = TypeVar("T")
PROMPT_BATCH = 8
"""Prompts that the text encoders encode at once."""


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
    always_uncropped: bool = False
    """Whether training, too, conditions on an image that was never resized or cropped. Bases that were pre-
    trained at one size say so in `qrlora.json`."""
    original: Callable[[str], Tensor] | None = None
    """(layer) -> its weight (o, i) in the checkpoint, where the trainable component is quantised; else None."""
    execution_device: torch.device | None = None
    """Where components compute; None: nothing is moved. Text encoders and VAE are offloaded to the CPU while they
    do not compute, so that they take no memory of a GPU."""
    offload: bool = False
    """Whether the trainable component is offloaded, too; else it stays on the device once it was needed there."""
    reads_captions: bool = False
    """Whether prompts are read as the synthetic benchmark's captions are written (`captions.as_caption`). Bases that
    know no other words say so in `qrlora.json`."""

    @property
    def model(self) -> nn.Module:
        """The trainable component."""
        return getattr(self.pipe, self.family.component)

    @property
    def device(self) -> torch.device:
        """Where each component computes."""
        return self.execution_device or next(self.model.parameters()).device

    @property
    def pixels_per_latent(self) -> int:
        """Pixels of a side for each place of the latents; pipelines of videos have a word of their own for it."""
        pipe = self.pipe
        return getattr(pipe, "vae_scale_factor", None) or pipe.vae_scale_factor_spatial

    @property
    def size_multiple(self) -> int:
        """Sides of images are multiples of so many pixels."""
        return self.family.size_multiple(self.pipe)

    @property
    def noising(self) -> Noising:
        """The base's noising process, with all timesteps weighted alike."""
        return noising_of(self.pipe.scheduler.config)

    def check_size(self, name: str, size: ImageSize) -> None:
        """Raises ValueError with the nearest good value: no size that this base's images can have."""
        step, sides = self.size_multiple, height_and_width(size)
        if any(pixels < 1 or pixels % step for pixels in sides):
            height, width = (max(step, round(pixels / step) * step) for pixels in sides)
            nearest = parse_image_size(name, f"{width}x{height}")
            raise ValueError(f"{name} must be a multiple of {step} pixels for {self.name}, got {size}: try {nearest}")

    @property
    def missing_components(self) -> list[str]:
        """Text encoders and VAE that the base should have and has not; after `release` all of them."""
        names = (n for n in (*self.family.text_encoders, "vae") if n not in self.family.optional_components)
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

    def size_conditioning(
        self, original_size: tuple[int, int], crop_top_left: tuple[int, int], target_size: tuple[int, int]
    ) -> SizeConditioning:
        """Size and crop conditioning of an image, as this base reads it: see `always_uncropped`."""
        if self.always_uncropped:
            return SizeConditioning.uncropped(*target_size)
        return SizeConditioning(original_size, crop_top_left, target_size)

    def as_read(self, prompts: Sequence[str]) -> list[str]:
        """Prompts as the tokenizers are given them."""
        return [as_caption(prompt) for prompt in prompts] if self.reads_captions else list(prompts)

    def encode_prompt(self, prompts: Sequence[str], sizes: SizeConditioning) -> Condition:
        """Condition of b prompts for images with this size and crop conditioning; no gradient."""
        return self._encode_in_batches(prompts, lambda some: self.family.encode_prompt(self.pipe, some, sizes))

    def encode_prompts(self, prompts: Sequence[str], sizes: Sequence[SizeConditioning]) -> Condition:
        """The base's conditioning of b prompts, each with the size and crop of an image of its own; no gradient."""
        if len(set(sizes)) == 1:
            return self.encode_prompt(prompts, sizes[0])
        pairs = list(zip(self.as_read(prompts), sizes, strict=True))
        once = list(dict.fromkeys(pairs))

        def encode() -> Condition:
            return Condition.joined([self.family.encode_prompt(self.pipe, [prompt], own) for prompt, own in once])

        found = self._run_on_device([*self.family.text_encoders], encode)
        return found if once == pairs else found.rows([once.index(pair) for pair in pairs])

    def embed(self, prompts: Sequence[str], negative_prompt: str, guidance: float) -> Condition:
        """What the base's `denoise` reads of b prompts; no gradient."""
        (negative,) = self.as_read([negative_prompt])
        return self._encode_in_batches(prompts, lambda some: self.family.embed(self.pipe, some, negative, guidance))

    def _encode_in_batches(self, prompts: Sequence[str], encode: Callable[[list[str]], Condition]) -> Condition:
        """Encode each of an open base's prompts once, PROMPT_BATCH at a time: dozens would take more memory than an
        update."""
        prompts = self.as_read(prompts)
        once = list(dict.fromkeys(prompts))
        batches = [once[k : k + PROMPT_BATCH] for k in range(0, len(once), PROMPT_BATCH)]
        found = self._run_on_device(
            [*self.family.text_encoders], lambda: Condition.joined([encode(batch) for batch in batches])
        )
        return found if once == prompts else found.rows([once.index(prompt) for prompt in prompts])

    def encode_image(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents (b, c, h, w) of pixels (b, 3, H, W) in -1..1, as `pipeline_steps.encode_image`; no gradient."""
        return self._run_on_device(["vae"], lambda: encode_image(self.pipe, pixels.to(self.device), generator))

    def decode_image(self, latents: Tensor) -> list[Any]:
        """One PIL image for each of the latents (b, c, h, w), as `pipeline_steps.decode_image`; no gradient."""
        return self._run_on_device(["vae"], lambda: decode_image(self.pipe, latents.to(self.device)))

    def decode_frames(self, latents: Tensor) -> list[Any]:
        """The PIL frames of one video's latents (1, c, f, h, w), as `pipeline_steps.decode_frames`; no gradient."""
        return self._run_on_device(["vae"], lambda: decode_frames(self.pipe, latents.to(self.device)))

    def denoise(
        self,
        embedded: Condition,
        size: ImageSize,
        steps: int,
        guidance: float,
        generators: Sequence[torch.Generator],
        frames: int = 1,
    ) -> Tensor:
        """Latents (b, c, h, w) of one image of this size in pixels for each row of what `embed` returned, by the stock
        pipeline; no gradient. The guidance is the one that `embed` was given. Of videos of several frames (see
        Family.frames_per_latent), (b, c, f, h, w).

        Raises: ValueError: NaN or infinity, which would be black images.
        """
        hidden = self.encoders_and_vae
        with torch.no_grad(), self.on_device():
            self.release()  # a pipeline computes where its first component is
            try:
                video = {"frames": frames} if frames > 1 else {}
                arguments = (embedded.to(self.device), size, steps, guidance, generators)
                latents = self.family.sample(self.pipe, *arguments, **video)
            finally:
                for name, component in hidden.items():
                    setattr(self.pipe, name, component)
        self._refuse_nan(latents)
        return latents

    def _refuse_nan(self, latents: Tensor) -> None:
        """Raises ValueError, with the hint: the latents hold NaN or infinity."""
        if bool(torch.isfinite(latents).all()):
            return
        dtypes = {
            x.dtype for component in (self.model, *self.encoders_and_vae.values()) for x in component.parameters()
        }
        half = torch.float16 in dtypes or torch.bfloat16 in dtypes
        hint = "--dtype float32, or bfloat16 if it was float16" if half else "smaller strengths, or less guidance"
        raise ValueError(f"{self.name} sampled NaN or infinity, which would be a black image: try {hint}")

    @property
    def encoders_and_vae(self) -> dict[str, nn.Module]:
        """Text encoders and VAE, which training does not need once latents and conditioning are there."""
        names = (*self.family.text_encoders, "vae")
        return {name: component for name in names if (component := getattr(self.pipe, name, None)) is not None}

    def release(self, keep: Sequence[str] = ()) -> None:
        """Drop text encoders and VAE, and with them their memory, but for those to keep. Such a base can train, but no
        longer sample."""
        for name in self.encoders_and_vae:
            if name not in keep:
                setattr(self.pipe, name, None)

    def sample(
        self,
        prompts: Sequence[str],
        negative_prompt: str,
        size: ImageSize,
        steps: int,
        guidance: float,
        generators: Sequence[torch.Generator],
    ) -> list[Any]:
        """Sample with the base: one PIL image of this size in pixels per prompt: text encoders, trainable component and
        VAE in turn."""
        embedded = self.embed(prompts, negative_prompt, guidance)
        return self.decode_image(self.denoise(embedded, size, steps, guidance, generators))

    @contextlib.contextmanager
    def on_device(self) -> Iterator[None]:
        """The trainable component is on the device for the length of a `with`; without offload it stays there."""
        with components_on_device([self.model], self.execution_device, stay=not self.offload):
            yield

    def _run_on_device(self, names: Sequence[str], compute: Callable[[], T]) -> T:
        """Compute with these components of the base on the execution device, without gradients.

        With offload the trainable component is offloaded before; without, only where a GPU's memory runs out: then
        compute() is called once more.
        """
        components = [component for name in names if (component := getattr(self.pipe, name, None)) is not None]
        with torch.no_grad():
            if not self.offload:
                try:
                    with components_on_device(components, self.execution_device):
                        return compute()
                except torch.cuda.OutOfMemoryError:
                    if next(self.model.parameters()).device.type != "cuda":
                        raise
                running = " and ".join(names)
                warnings.warn(
                    f"memory ran out: the {self.family.component} was offloaded for {running}, as offload=true does",
                    stacklevel=3,
                )
            offloaded = torch.device("cpu") if self.execution_device else None
            with components_on_device([self.model], offloaded), components_on_device(components, self.execution_device):
                return compute()
