"""Hyperparameters of a pre-training run, checked on creation, and which of them may change when it is resumed."""

from dataclasses import dataclass
from typing import Literal

from ..config.type_checks import as_dict, check_at_least, check_types

CHANGEABLE_SETTINGS = ("samples", "decay")
"""Settings that may differ when a run is resumed: a run may be lengthened."""
MAX_SEED = 10**12
"""Every step has a seed of its own, this times a million and the step: 64 bits hold it."""


@dataclass(frozen=True, kw_only=True)
class PretrainingSettings:
    """Hyperparameters of a pre-training run; their names stand in checkpoints and in ``training.json``."""

    samples: int = 1_000_000
    """Images in all steps together, with repetition."""
    batch_size: int = 64
    """Images a step."""
    learning_rate: float = 1e-3
    """Of both optimizers, on the plateau."""
    warmup: int = 200
    """Steps over which the learning rate rises from zero."""
    decay: float = 0.3
    """Fraction of the run, at its end, over which the learning rate decays to zero."""
    average: float = 0.999
    """Decay per step of the exponential moving average of the weights, which is what ships."""
    styled_hands: int = 4_000
    """Images in the training set of contents by other hands than the plain one, in named styles."""
    random: int = 10_000
    """Images in the training set in random styles, which captions call ``<s>``."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the forward and backward pass; weights, optimizers and loss are float32. auto: bfloat16 on a GPU."""
    start: str = ""
    """A trained base of the same shape to initialise the weights from, by built-in name or folder; "": none."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(PretrainingSettings, as_dict(self))
        for name, low in {"samples": 1, "batch_size": 1, "warmup": 1, "styled_hands": 0, "random": 0}.items():
            check_at_least(self, name, low)
        if self.samples < self.batch_size:
            raise ValueError(f"samples {self.samples} are less than one batch of {self.batch_size}: no step is taken")
        check_at_least(self, "seed", 0, MAX_SEED)
        if not 0 < self.learning_rate < 3.4e38:  # float32's
            raise ValueError(f"learning_rate must be a positive number such as 1e-3, got {str(self.learning_rate):.30}")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay must be a fraction of the run, 0..1, got {self.decay}")
        if not 0 <= self.average < 1:
            raise ValueError(f"average must be 0 or more and less than 1, such as 0.999, got {self.average}")

    @property
    def steps(self) -> int:
        return self.samples // self.batch_size

    def learning_rate_at(self, step: int, over: float = 0.0) -> float:
        """Learning rate of a step. Args: over: fraction of the run's time that has passed, if the clock ends it."""
        left = (1 - max(over, step / self.steps)) / max(1 / self.steps, self.decay)
        return self.learning_rate * min(1.0, (step + 1) / self.warmup, left)
