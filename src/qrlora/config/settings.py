"""Every setting of a run, as frozen dataclasses.

A setting that is None is left open: `filled` takes it from the base, so that small and large bases share recipes.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from ..image_size import parse_image_size
from ..layouts import current_preset
from ..trigger_words import contains_word
from .image_settings import PATH_LISTS, normalise_paths, parse_crops, updates_of_images
from .renamed_settings import RENAMED, accepts_old_names, with_new_names
from .type_checks import MAX_SEED, as_dict, check_at_least, check_strengths, check_types

Quantize = Literal["", "nf4", "int8", "float8"]
"""How the linear layers of the unet or transformer are kept: in the base's dtype (""), or in 4 or 8 bits a weight."""

DEFAULT_SLOTS = {"content": 0, "style": 1}
"""Role -> the block of Ortha's orthogonal basis that an adapter of that role is trained in by default."""
TRIGGERS = {"content": "<c>", "style": "<s>"}
"""Role -> the default trigger word; the paper's prompt is "a <c> in <s> style"."""


@accepts_old_names(RENAMED)
@dataclass(frozen=True, kw_only=True)
class FamilyDefaults:
    """A base model's values for the settings that were left open (None). Those here are the paper's for SDXL."""

    rank: int = 64
    """LoRA rank of each layer."""
    targets: str = "self"
    """Preset of target layers."""
    learning_rate: float = 1e-4
    """Adam's learning rate."""
    steps: int = 500
    """Optimizer updates."""
    batch_size: int = 1
    """Noisy copies of the one training image in an update."""
    lr_decay: float = 0.0
    """Fraction of the updates, at the end, over which the learning rate falls linearly to zero."""
    timestep_sampling: str = "uniform"
    """Row of `noising.TIMESTEP_SAMPLING`: the distribution that training draws timesteps from."""
    resolution: int = 1024
    """Side of the square image, in pixels."""
    sample_steps: int = 50
    """Denoising steps of one image."""
    guidance: float = 5.0
    """Classifier-free guidance scale, or the guidance that a guidance-distilled base takes as an input."""
    special: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Exceptions by role ("style"), method ("lora") or both ("style/lora"): {"lora": {"learning_rate": 1e-3}}."""

    def with_base_defaults(self, tables: Mapping[str, Any]) -> "FamilyDefaults":
        """A family's default settings, overridden by those in a base's folder.

        Args:   tables: {"train": {...}, "sample": {"steps", "guidance"}}, the "defaults" of `qrlora.json`. A table
                inside "train" is an exception for the role or method that it is named after.
        Raises: ValueError: an unknown name, or a value of a wrong type.
        """
        for name, table in {"defaults": tables, **(tables if isinstance(tables, Mapping) else {})}.items():
            if not isinstance(table, Mapping):
                raise ValueError(f"{name} must be a table of settings, got {table!r:.80}")
        train = dict(tables.get("train", {}))
        special = {name: dict(train.pop(name)) for name in list(train) if isinstance(train[name], Mapping)}
        sample = {"sample_steps" if k == "steps" else k: v for k, v in dict(tables.get("sample", {})).items()}
        train = with_new_names(FamilyDefaults, train)
        special = {name: with_new_names(FamilyDefaults, values) for name, values in special.items()}
        for values in (train | sample, *special.values()):
            check_types(FamilyDefaults, values)
        for values in (train, *special.values()):
            if "targets" in values:
                values["targets"] = current_preset(values["targets"])
        return dataclasses.replace(self, **train, **sample, special={**self.special, **special})

    def for_run(self, role: str, method: str) -> "FamilyDefaults":
        """Default settings of a run: with exceptions for a method, then a role, then both, applied in this order."""
        values: dict[str, Any] = {}
        for name in (method, role, f"{role}/{method}"):
            values |= self.special.get(name, {})
        return dataclasses.replace(self, **values)


@accepts_old_names(RENAMED)
@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of training one adapter on one image, or on several of one subject or style."""

    base: str = "tiny-flux"
    """Base model: a built-in name, a hub name, a local folder or one `.safetensors` checkpoint."""
    draw_with: str = ""
    """Base model to draw with, if another one of the same layers than `base`: an undistilled base to train on, its
    distilled sibling to draw with. The adapter's header names it, for `generate` and `grid`; `qrlora bases BASE OTHER`
    says how much the two share. Previews are drawn with `base`."""
    image: str | Path | tuple[str | Path, ...] = ""
    """The training image: a file; or several of one subject or style: a folder, or a list of files and folders. On the
    command line: image=FOLDER, image=a.png,b.png or image=a.png image=b.png. Beside one of several a text file of its
    name, a.txt, holds its caption."""
    crop: str | tuple[int | str | tuple[int, ...], ...] = ()
    """x,y,side in pixels of the image: the square of it that is used, or the left, top and width of what is, if
    `resolution` is no square; of several images one crop each, in their order,
    crop=0,0,600 crop=40,0,512. Empty: the middle square."""
    mask: str | Path | tuple[str | Path, ...] = ""
    """What of the image counts in the loss: a grey image of its size, white where it counts, black for the background;
    of several images one each, in their order, or a folder with files of their names. Empty: transparent parts, if the
    image has any, are background."""
    role: Literal["content", "style"] = "content"
    """What to train on it: its subject (content) or its style."""
    trigger: str = ""
    """The trigger word for it in prompts; empty: `<c>` for content, `<s>` for style."""
    prompt: str = ""
    """The image's caption, with the trigger word in it; of several images that of each without a text file. Empty for
    content: "a <c>". A style's caption names the subject: "a cat in <s> style"."""
    output: str | Path = "adapter.safetensors"
    """The adapter file to write. If this very run has written it before, nothing is done."""
    overwrite: bool = False
    """Replace a file of another run at `output`, instead of stopping before one."""
    method: str = "qr"
    """Row of `methods.METHODS`, such as qr or lora, or `peft:KIND`, such as peft:dora: any of PEFT's own methods."""
    slot: int | None = None
    """Block of the orthogonal basis, for method=ortha; adapters that are to be added need different ones. None: 0 for
    content, 1 for style."""
    rank: int | None = None
    """LoRA rank of each layer; None: the base's default (64, as in the paper)."""
    targets: str | None = None
    """Target layers: a preset of the family (`qrlora bases` lists them) or name endings; None: the base's default."""
    steps: int | None = None
    """Updates, neither images nor epochs; None: the base's default (500, as in the paper), for many images up to 3x."""
    learning_rate: float | None = None
    """Learning rate; None: the base's default (1e-4), or 1 for prodigy, which multiplies the rate that it estimates."""
    batch_size: int | None = None
    """Noisy copies of the image in one update, over all processes; None: the base's default (1)."""
    lr_decay: float | None = None
    """Fraction of the updates, 0..1, at the end, over which the learning rate falls linearly to zero; None: the base's
    default (0: a constant rate, as in the paper)."""
    timestep_sampling: str | None = None
    """The distribution of training timesteps: `uniform`, `noisy` (more at high noise, where colour and layout are
    decided) or `logit-normal` (more in the middle); None: the base's default (logit-normal for SD3, else uniform)."""
    resolution: int | str | None = None
    """Size that images are cropped and resized to, in pixels: the side of a square, or WIDTHxHEIGHT, such as 768x512;
    None: the base's default (1024)."""
    optimizer: Literal["adam", "adamw", "adam8bit", "prodigy"] = "adam"
    """adam, the paper's; adamw with weight decay 1e-2; adam8bit, whose state takes a quarter of the memory (GPU only);
    prodigy, which estimates its own learning rate. The last two need the extra `qrlora[optimizers]`."""
    min_snr_gamma: float = 0.0
    """gamma of the min-SNR loss weight (arXiv 2303.09556), SDXL only; 0 weighs all timesteps alike, as the paper."""
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass: less memory, about a third slower, the same numbers. None: once a
    GPU's memory has run out."""
    seed: int = 0
    """Random seed: two runs with one seed on one machine write the same bytes."""
    revision: str = ""
    """Branch, tag or commit of a base on the hub; empty: its main branch. `base=OWNER/NAME@REVISION` is equivalent."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """dtype of the frozen base; LoRA factors, loss and optimizer state are always float32. auto: bfloat16 on a GPU that
    is fast at it, float16 with loss scaling on older ones with CUDA (T4, V100, RTX 20), else float32."""
    quantize: Quantize = ""
    """Quantise the base's unet or transformer: nf4 (a GPU with CUDA), int8 or float8; fastest with dtype=bfloat16. The
    frozen directions are computed from the original weights. Needs the extra `qrlora[quantize]`."""
    offload: bool = False
    """Text encoders, VAE and the unet or transformer are on the GPU only while they compute: slower, less memory."""
    device: str = "auto"
    """auto (cuda, then mps, then cpu), or a torch device such as cuda:1."""
    save_every: int = 0
    """Write a checkpoint after so many updates; 0: only when interrupted."""
    adapter_every: int = 0
    """Write the adapter each time after so many updates, beside the output as NAME-00100.safetensors; 0: at the end."""
    checkpoint_dir: str | Path = ""
    """Folder of the checkpoint; empty: beside the output, see `checkpoints`. A run with equal settings resumes it."""
    preview_every: int = 0
    """Generate a preview image after so many updates; 0: none."""
    preview_prompt: str = ""
    """Prompt of the previews; empty: `prompt`."""
    tensorboard: bool = False
    """Log the loss for tensorboard beside the output (needs the extra `qrlora[tensorboard]`)."""

    def __post_init__(self) -> None:
        check_types(TrainConfig, as_dict(self))
        if self.targets is not None:
            object.__setattr__(self, "targets", current_preset(self.targets, stacklevel=4))
        for name in PATH_LISTS:
            object.__setattr__(self, name, normalise_paths(getattr(self, name)))
        object.__setattr__(self, "crop", parse_crops(self.crop))
        for name in ("output", "checkpoint_dir"):
            object.__setattr__(self, name, str(getattr(self, name)))
        if not self.trigger:
            object.__setattr__(self, "trigger", TRIGGERS[self.role])
        if not self.prompt and self.role == "content":
            object.__setattr__(self, "prompt", f"a {self.trigger}")
        for name in ("rank", "steps", "batch_size"):
            check_at_least(self, name, 1)
        object.__setattr__(self, "resolution", parse_image_size("resolution", self.resolution))
        for name in ("slot", "min_snr_gamma", "save_every", "adapter_every", "preview_every"):
            check_at_least(self, name, 0)
        check_at_least(self, "seed", 0, MAX_SEED)
        if self.learning_rate is not None and not 0 < self.learning_rate < 3.4e38:  # float32's
            raise ValueError(f"learning_rate must be a positive number such as 1e-4, got {str(self.learning_rate):.30}")
        if self.lr_decay is not None and not 0 <= self.lr_decay <= 1:
            raise ValueError(f"lr_decay must be a fraction of the updates, 0..1, got {self.lr_decay}")

    @property
    def checkpoints(self) -> Path:
        """Folder that holds this run's checkpoint."""
        return Path(self.checkpoint_dir or Path(self.output).with_suffix(".checkpoint"))

    @property
    def orthogonal_slot(self) -> int:
        """`slot`, or its default for the role."""
        return DEFAULT_SLOTS[self.role] if self.slot is None else self.slot

    @property
    def has_several_images(self) -> bool:
        """Whether `image` is a list or a folder, of one image at least, not a file."""
        return isinstance(self.image, tuple) or Path(str(self.image)).is_dir()

    def checked(self) -> Self:
        """These settings. Raises ValueError: no image, no prompt for a style, or a prompt without its trigger word.
        What a prompt lacks may stand in the captions of several images, see `training.training_images`."""
        if not self.image:
            raise ValueError("no training image: give image=FILE, or image=FOLDER for several")
        if self.has_several_images:
            return self
        if not self.prompt:
            raise ValueError(f"a style needs a caption of its image: prompt='a cat in {self.trigger} style'")
        if not contains_word(self.prompt, self.trigger):
            hint = f"a {self.trigger}" if self.role == "content" else f"a cat in {self.trigger} style"
            lacks = f"the prompt {self.prompt!r} lacks its trigger word {self.trigger!r}"
            raise ValueError(f"{lacks}: try {hint!r}, or name its own: trigger=WORD")
        return self

    def filled(self, defaults: FamilyDefaults, images: int = 1) -> Self:
        """These settings with every None replaced by the base's default for its role, its method and so many images."""
        values = defaults.for_run(self.role, self.method)
        rate = 1.0 if self.optimizer == "prodigy" else values.learning_rate
        values = dataclasses.replace(values, learning_rate=rate, steps=updates_of_images(values.steps, images))
        names = ("rank", "targets", "steps", "learning_rate", "lr_decay", "batch_size", "timestep_sampling")
        left_open = [name for name in (*names, "resolution") if getattr(self, name) is None]
        return dataclasses.replace(self, **{name: getattr(values, name) for name in left_open})


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Settings of generating images with a base and any number of adapters."""

    base: str = "tiny-flux"
    """Base model: a built-in name, a hub name, a local folder or one `.safetensors` checkpoint."""
    prompt: str = ""
    """The prompt, with the adapters' trigger words in it: "a <c> in <s> style"."""
    negative_prompt: str = ""
    """The negative prompt; FLUX.1-dev has none."""
    adapters: tuple[str, ...] = ()
    """Adapter files; their updates add."""
    strengths: tuple[float, ...] = ()
    """One strength for each adapter (the paper's lambda); empty: 1 for each."""
    steps: int | None = None
    """Denoising steps; None: the base's default (50 for SDXL, 28 for SD3 and FLUX)."""
    guidance: float | None = None
    """Classifier-free guidance scale, or FLUX.1-dev's guidance input; None: the base's default (5, SD3 7, FLUX 3.5)."""
    seed: int = 0
    """Seed of the first image; the next ones take seed + 1, seed + 2, ..."""
    count: int = 1
    """How many images."""
    size: int | str | None = None
    """Size of the images in pixels: the side of a square, or "WIDTHxHEIGHT"; None: the base's default."""
    output: str | Path = "picture.png"
    """The file to write: one image, or a contact sheet if `count` is above 1; numbered if there is one of that name."""
    overwrite: bool = False
    """Replace images of these names instead of numbering."""
    device: str = "auto"
    """auto (cuda, then mps, then cpu), or a torch device such as cuda:1."""
    revision: str = ""
    """Branch, tag or commit of a base on the hub; empty: its main branch. `base=OWNER/NAME@REVISION` is equivalent."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """dtype of the base; auto: bfloat16 on a GPU that is fast at it, float16 on older ones with CUDA, else float32."""
    quantize: Quantize = ""
    """Quantise the base's unet or transformer: nf4 (a GPU with CUDA), int8 or float8; see `TrainConfig`."""
    offload: bool = False
    """Keep every component of the base in the CPU's memory but while it runs: slower, less GPU memory."""

    def __post_init__(self) -> None:
        check_types(SampleConfig, as_dict(self))
        for name in ("adapters", "strengths"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "output", str(self.output))
        check_strengths(self.strengths)
        object.__setattr__(self, "strengths", tuple(float(x) for x in self.strengths) or (1.0,) * len(self.adapters))
        if len(self.strengths) != len(self.adapters):
            counts = f"{len(self.adapters)} adapters and {len(self.strengths)} strengths"
            raise ValueError(f"{counts}: give one strength for each adapter, or none at all")
        object.__setattr__(self, "size", parse_image_size("size", self.size))
        for name, least in {"steps": 1, "count": 1, "guidance": 0}.items():
            check_at_least(self, name, least)
        check_at_least(self, "seed", 0, MAX_SEED)

    def filled(self, defaults: FamilyDefaults) -> Self:
        """These settings with every None replaced by the base's default."""
        values = {"steps": defaults.sample_steps, "guidance": defaults.guidance, "size": defaults.resolution}
        return dataclasses.replace(self, **{name: x for name, x in values.items() if getattr(self, name) is None})
