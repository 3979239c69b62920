"""Every setting of a run: frozen dataclasses, TOML recipes, `key=value` overrides.

A setting that is None is not chosen yet: `filled` takes it from the base, so that small and large bases share recipes.
"""

import dataclasses
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from ..trigger_words import read_text, says
from .type_checks import as_dict, at_least, check_strengths, check_types, parsed

__all__ = ["FamilyDefaults", "SampleConfig", "TrainConfig", "TRIGGERS", "as_dict", "check_types", "read_recipe"]

Quantize = Literal["", "nf4", "int8", "float8"]
"""How the linear layers of the trainable part are kept: in the base's number type, or in 4 or 8 bits a weight."""

SLOTS = {"content": 0, "style": 1}
"""Role -> the block of Ortha's orthogonal basis that it learns in, unless the run says another."""

TRIGGERS = {"content": "<c>", "style": "<s>"}
"""Role -> the word that stands for what is learnt; the paper's prompt is "a <c> in <s> style"."""


@dataclass(frozen=True, kw_only=True)
class FamilyDefaults:
    """What a base model prefers where a person has not chosen. The values here are the paper's for SDXL."""

    rank: int = 64
    """Directions an adapter may use in each layer."""
    targets: str = "self"
    """Preset of layers that learn."""
    learning_rate: float = 1e-4
    """Adam's step."""
    steps: int = 500
    """Optimizer updates."""
    batch_size: int = 1
    """Noisy copies of the one picture in an update."""
    decay: float = 0.0
    """Part of the updates, at the end, over which the learning rate falls to zero."""
    times: str = "uniform"
    """Row of `noise.TIMES`: how often training sees which noise level."""
    resolution: int = 1024
    """Side of the square picture, in pixels."""
    sample_steps: int = 50
    """Denoising steps of one picture."""
    guidance: float = 5.0
    """Classifier-free guidance when sampling, or the number that a guidance-distilled base reads."""
    special: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Exceptions by role ("style"), method ("lora") or both ("style/lora"): {"lora": {"learning_rate": 1e-3}}."""

    def revised(self, tables: Mapping[str, Any]) -> "FamilyDefaults":
        """These defaults with a base folder's own on top.

        Args:   tables: {"train": {...}, "sample": {"steps", "guidance"}}, the "defaults" of `qrlora.json`. A table
                inside "train" is an exception for the role or method that it is named after.
        Raises: ValueError: a name or type that no default has.
        """
        for name, table in {"defaults": tables, **(tables if isinstance(tables, Mapping) else {})}.items():
            if not isinstance(table, Mapping):
                raise ValueError(f"{name} must be a table of settings, got {table!r:.80}")
        train = dict(tables.get("train", {}))
        special = {name: train.pop(name) for name in list(train) if isinstance(train[name], Mapping)}
        sample = {"sample_steps" if k == "steps" else k: v for k, v in dict(tables.get("sample", {})).items()}
        for values in (train | sample, *special.values()):
            check_types(FamilyDefaults, values)
        return dataclasses.replace(self, **train, **sample, special={**self.special, **special})

    def for_run(self, role: str, method: str) -> "FamilyDefaults":
        """These defaults with the exceptions for a method, then a role, then both, applied in this order."""
        values: dict[str, Any] = {}
        for name in (method, role, f"{role}/{method}"):
            values |= self.special.get(name, {})
        return dataclasses.replace(self, **values)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One adapter from one picture."""

    base: str = "tiny-sdxl"
    """Base model: a built-in name, a hub name, a local folder or one `.safetensors` checkpoint."""
    image: str | Path = ""
    """The picture to learn from: a file."""
    role: Literal["content", "style"] = "content"
    """What to learn from it: the thing it shows, or the manner it is made in."""
    trigger: str = ""
    """The word that will stand for it in prompts; empty: `<c>` for content, `<s>` for style."""
    prompt: str = ""
    """What the picture shows, with the trigger word in it. Empty for content: "a <c>"; a style's names the thing."""
    output: str | Path = "adapter.safetensors"
    """The adapter file to write; if this very run has written it before, that is said and nothing is done."""
    overwrite: bool = False
    """Replace a file of another run at `output`, instead of stopping before one."""
    method: str = "qr"
    """Row of `methods.METHODS`, such as qr or lora, or `peft:KIND`, such as peft:dora: any of PEFT's own methods."""
    slot: int | None = None
    """Block of the orthogonal basis, for method=ortha; adapters that are to be added need different ones. None: 0 for
    content, 1 for style."""
    rank: int | None = None
    """Directions an adapter may use in each layer; None: the base's own (64, as in the paper)."""
    targets: str | None = None
    """Layers that learn: a preset of the family (`qrlora bases` lists them) or name endings; None: the base's."""
    steps: int | None = None
    """Optimizer updates: a count, neither pictures nor epochs; None: the base's own (500, as in the paper)."""
    learning_rate: float | None = None
    """Step of the optimizer; None: the base's own (1e-4), or 1 for prodigy, which finds its step and multiplies it."""
    batch_size: int | None = None
    """Noisy copies of the picture in one update, of all processes together; None: the base's own (1)."""
    decay: float | None = None
    """Part of the updates, 0..1, at the end, over which the learning rate falls linearly to zero; None: the base's own
    (0: a constant rate, as in the paper)."""
    times: str | None = None
    """How often training sees which noise level: `uniform`, `noisy` (dwells where colour and layout are settled) or
    `logit-normal` (dwells in the middle); None: the base's own (logit-normal for SD3, else uniform)."""
    resolution: int | None = None
    """Side of the square that the picture is fitted to, in pixels; None: the base's own (1024)."""
    optimizer: Literal["adam", "adamw", "adam8bit", "prodigy"] = "adam"
    """adam, the paper's; adamw with weight decay 1e-2; adam8bit, whose state takes a quarter of the memory (GPU only);
    prodigy, which finds its own step. The last two need the extra `qrlora[optimizers]`."""
    min_snr_gamma: float = 0.0
    """Bound of the min-SNR loss weight (arXiv 2303.09556), SDXL only; 0 weighs all noise levels alike, as the paper."""
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass: less memory, about a third slower, the same numbers. None: once a
    GPU's memory has run out."""
    seed: int = 0
    """Seed of everything random: two runs with one seed on one machine write the same bytes."""
    revision: str = ""
    """Branch, tag or commit of a base on the hub; empty: its main branch. `base=OWNER/NAME@REVISION` says the same."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number type of the frozen base; factors, loss and optimizer are always float32. auto: bfloat16 on a GPU that is
    fast at it, float16 with a scaled loss on older ones with CUDA (T4, V100, RTX 20), else float32."""
    quantize: Quantize = ""
    """Keep the base's trainable part in fewer bits: nf4 (a GPU with CUDA), int8 or float8; fastest with dtype=bfloat16.
    Directions come from the original weights. Needs the extra `qrlora[quantize]`."""
    offload: bool = False
    """Text encoders and VAE never enter the GPU's memory to train; they read picture and prompt on the CPU."""
    device: str = "auto"
    """auto (cuda, then mps, then cpu), or a torch device such as cuda:1."""
    save_every: int = 0
    """Write a checkpoint after so many updates; 0: only when interrupted."""
    checkpoint_dir: str | Path = ""
    """Folder of the checkpoint; empty: beside the output, see `checkpoints`. A run with equal settings resumes it."""
    preview_every: int = 0
    """Draw a preview picture after so many updates; 0: none."""
    preview_prompt: str = ""
    """Prompt of the previews; empty: `prompt`."""
    tensorboard: bool = False
    """Log the loss for tensorboard beside the output (needs the extra `qrlora[tensorboard]`)."""

    def __post_init__(self) -> None:
        check_types(TrainConfig, as_dict(self))
        for name in ("image", "output", "checkpoint_dir"):
            object.__setattr__(self, name, str(getattr(self, name)))
        if not self.trigger:
            object.__setattr__(self, "trigger", TRIGGERS[self.role])
        if self.slot is None:
            object.__setattr__(self, "slot", SLOTS[self.role])
        if not self.prompt and self.role == "content":
            object.__setattr__(self, "prompt", f"a {self.trigger}")
        for name in ("rank", "steps", "batch_size", "resolution"):
            at_least(self, name, 1)
        for name in ("seed", "slot", "min_snr_gamma", "save_every", "preview_every"):
            at_least(self, name, 0)
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be a positive number such as 1e-4, got {self.learning_rate}")
        if self.decay is not None and not 0 <= self.decay <= 1:
            raise ValueError(f"decay is a part of the updates, 0..1, got {self.decay}")

    @property
    def checkpoints(self) -> Path:
        """Folder that holds this run's checkpoint."""
        return Path(self.checkpoint_dir or Path(self.output).with_suffix(".checkpoint"))

    def checked(self) -> Self:
        """This config; ValueError: no picture, no prompt for a style, or a prompt without its trigger word."""
        if not self.image:
            raise ValueError("no picture to learn from: give image=FILE")
        if not self.prompt:
            raise ValueError(f"say what the style picture shows: prompt='a cat in {self.trigger} style'")
        if not says(self.prompt, self.trigger):
            way_out = f"a {self.trigger}" if self.role == "content" else f"a cat in {self.trigger} style"
            lacks = f"the prompt {self.prompt!r} lacks its trigger word {self.trigger!r}"
            raise ValueError(f"{lacks}: try {way_out!r}, or name its own: trigger=WORD")
        return self

    def filled(self, defaults: FamilyDefaults) -> Self:
        """This config with every None replaced by the base's default for its role and method."""
        own = defaults.for_run(self.role, self.method)
        if self.optimizer == "prodigy":
            own = dataclasses.replace(own, learning_rate=1.0)
        names = ("rank", "targets", "steps", "learning_rate", "decay", "batch_size", "times", "resolution")
        return dataclasses.replace(self, **{n: getattr(own, n) for n in names if getattr(self, n) is None})


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Pictures from a base and any number of adapters."""

    base: str = "tiny-sdxl"
    """Base model: a built-in name, a hub name, a local folder or one `.safetensors` checkpoint."""
    prompt: str = ""
    """What to draw, with the trigger words of the adapters in it: "a <c> in <s> style"."""
    negative_prompt: str = ""
    """What to keep out of the picture; FLUX.1-dev reads none."""
    adapters: tuple[str, ...] = ()
    """Adapter files; their updates add."""
    strengths: tuple[float, ...] = ()
    """One factor for each adapter (the paper's lambda); empty: 1 for each."""
    steps: int | None = None
    """Denoising steps; None: the base's own (50 for SDXL, 28 for SD3 and FLUX)."""
    guidance: float | None = None
    """Classifier-free guidance, or the number that FLUX.1-dev reads; None: the base's own (SDXL 5, SD3 7, FLUX 3.5)."""
    seed: int = 0
    """Seed of the first picture; the next ones take seed + 1, seed + 2, ..."""
    count: int = 1
    """How many pictures."""
    size: int | None = None
    """Side of the square picture in pixels; None: the base's own."""
    output: str | Path = "picture.png"
    """The file to write: one picture, or a sheet when `count` is above 1; numbered if there is one of that name."""
    overwrite: bool = False
    """Replace pictures of these names instead of numbering."""
    device: str = "auto"
    """auto (cuda, then mps, then cpu), or a torch device such as cuda:1."""
    revision: str = ""
    """Branch, tag or commit of a base on the hub; empty: its main branch. `base=OWNER/NAME@REVISION` says the same."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number type of the base; auto: bfloat16 on a GPU that is fast at it, float16 on older ones with CUDA, else
    float32."""
    quantize: Quantize = ""
    """Keep the base's unet or transformer in fewer bits: nf4 (a GPU with CUDA), int8 or float8; see `TrainConfig`."""
    offload: bool = False
    """Every part of the base waits in the CPU's memory and enters the GPU's for its turn only: slower, less memory."""

    def __post_init__(self) -> None:
        for name in ("adapters", "strengths"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_types(SampleConfig, as_dict(self))
        object.__setattr__(self, "output", str(self.output))
        object.__setattr__(self, "strengths", tuple(float(x) for x in self.strengths) or (1.0,) * len(self.adapters))
        if len(self.strengths) != len(self.adapters):
            counts = f"{len(self.adapters)} adapters and {len(self.strengths)} strengths"
            raise ValueError(f"{counts}: give one strength for each adapter, or none at all")
        check_strengths(self.strengths)
        for name in ("steps", "count", "size"):
            at_least(self, name, 1)
        for name in ("seed", "guidance"):
            at_least(self, name, 0)

    def filled(self, defaults: FamilyDefaults) -> Self:
        """This config with every None replaced by the base's default."""
        own = {"steps": defaults.sample_steps, "guidance": defaults.guidance, "size": defaults.resolution}
        return dataclasses.replace(self, **{n: v for n, v in own.items() if getattr(self, n) is None})


Config = TypeVar("Config", TrainConfig, SampleConfig)


def read_recipe(path: str | Path | None, overrides: Iterable[str] = (), kind: type[Config] = TrainConfig) -> Config:
    """Settings from a TOML recipe with overrides on top.

    Args:    path: a TOML file of `name = value` lines, or None for the defaults.  kind: TrainConfig or SampleConfig.
             overrides: "name=value"; the value as TOML writes it, quotes optional around text.
    Raises:  OSError: no such file. ValueError: not TOML, an unknown name (with the nearest known one), a wrong type.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(read_text(path))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a TOML recipe: {error}") from error
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"an override reads name=value, got {override!r}")
        values[name.strip()] = parsed(kind, name.strip(), text.strip())
    check_types(kind, values)
    return kind(**values)
