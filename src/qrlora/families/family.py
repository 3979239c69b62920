"""The record of a family of backbones: how it encodes prompts, predicts and samples, as facts and functions.

Letters: b batch, h w latent height and width, c latent channels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..config import FamilyDefaults
from ..layouts import Layout
from .condition import Condition, SizeConditioning


class TokenLimits(NamedTuple):
    """The longest prompt that a base's tokenizers take, in tokens."""

    clip: int = 77
    t5: int = 512
    unpadded: int = 512
    """Of bases whose prompts are not padded, or whose model is not given the padding; the template's end counts."""


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
    encoded_tokens: Callable[[TokenLimits], int] | None = None
    """(tokens) -> tokens that a causal text encoder reads of a prompt, where those of its template or of padding are
    taken off for the model; None: as many as the model reads."""
    tokenizers: Mapping[str, str] = field(default_factory=dict)
    """Text encoder -> the component that makes its tokens, where that is not called "tokenizer" as its encoder is
    "text_encoder": see `tokenizer_of`."""
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

    def tokenizer_of(self, text_encoder: str) -> str:
        """The component that makes the tokens of a text encoder: "tokenizer_2" for "text_encoder_2"."""
        return self.tokenizers.get(text_encoder, text_encoder.replace("text_encoder", "tokenizer"))

    @property
    def served_models(self) -> str:
        """Its public models, for refusing another of the same kind: "as sdxl are served OWNER/NAME, OWNER/NAME"."""
        return f"as {self.name} are served {', '.join(x.hub for x in self.layout.variants.values())}"

    @property
    def targets(self) -> Mapping[str, tuple[str, ...]]:
        """Preset -> endings of layer names."""
        return self.layout.targets
