"""ComparisonSettings: the settings of a comparison, checked on creation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..config import as_dict
from ..config.type_checks import check_types
from ..world.captions import CONTENT, STYLE

ENCODERS_OF_THE_PAPER = ("dino-vits16", "clip-vit-base-patch32")


@dataclass(frozen=True, kw_only=True)
class ComparisonSettings:
    """The settings of a comparison: base, methods, image pairs, seeds, encoders."""

    base: str = "tiny-flux"
    methods: tuple[str, ...] = ("qr", "lora")
    """Rows of FUSIONS, or "peft:vera" for any method of PEFT's; "lora:rank=8:style/steps=80" trains with other
    settings, the last of them for the style adapter alone: see `method_specs`."""
    pairs: int = 27
    """Count of pairs of the synthetic benchmark; unused with `pictures`."""
    pictures: str = ""
    """A CSV file of one's own image pairs instead: see `image_pairs.pairs_from_csv`."""
    split: Literal["test", "dev"] = "test"
    style_word: str = STYLE
    """The style's trigger word in prompts: one without a meaning, or a style's name that the base knows."""
    seeds: int = 4
    """Images for each pair and method."""
    first_seed: int = 0
    """Seed of the first image of each pair; also the seed of training and fusing."""
    equal: Literal["rank", "parameters"] = "rank"
    """All methods have the reference's rank, or the rank with the nearest count of trainable parameters."""
    rank: int | None = None
    steps: int | None = None
    """Optimizer updates of each adapter; None: the base's default, as of `rank`."""
    encoders: tuple[str, ...] = ()
    """Vision encoders (DINO, CLIP, ST-LPIPS): see `evaluation.open_encoder`; with `pictures` the default is the paper's
    two kinds."""
    decompose: bool = False
    """Whether each adapter is also drawn with by itself, see `decomposition`: some six times the images."""
    device: str = "auto"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Check a comparison's settings."""
        for name in ("methods", "encoders"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_types(ComparisonSettings, as_dict(self))
        check_counts(vars(self), "pairs", "seeds", "rank", "steps")
        if not self.style_word.strip() or self.style_word == CONTENT:
            raise ValueError(f"the style needs a word of its own in prompts, got {self.style_word!r}")
        if self.pictures and not self.encoders:  # without ground truth there are no other scores
            object.__setattr__(self, "encoders", ENCODERS_OF_THE_PAPER)
        if self.first_seed < 0:
            raise ValueError(f"the first seed must be 0 or more, got {self.first_seed}")
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"give each method once, and at least one, got {', '.join(self.methods) or 'none'}")


def check_counts(settings: Mapping[str, Any], *names: str) -> None:
    """Raises ValueError: one of a comparison's settings that are counts is given and below 1."""
    for name in names:
        count = settings.get(name)
        if count is not None and count < 1:
            raise ValueError(f"{name} must be 1 or more, got {count}")
