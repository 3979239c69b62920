"""What is compared, and on which terms: rank, layers and updates equal for all, the rest as asked for."""

import dataclasses
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

from ..baselines import FusionMethod
from ..config import TrainConfig, as_dict
from ..config.renamed_settings import new_setting_name
from ..config.type_checks import check_types, parse_override
from ..families import Base
from ..injection.peft_methods import initialise_peft, parse_peft_method
from ..methods import METHODS
from ..world.captions import CONTENT, STYLE
from .run_job import ENDS, fusion_of

REFERENCE = "qr"
"""The method whose rank, steps and layers on a base all others are given."""
SHARED = ("rank", "targets", "steps", "lr_decay", "batch_size", "timestep_sampling", "resolution")
CHOSEN = (*SHARED, "learning_rate", "optimizer", "min_snr_gamma")
"""What "NAME:SETTING=VALUE" may set, for both roles or, as "NAME:style/SETTING=VALUE", for one."""
ROLES = ("content", "style")
ENCODERS_OF_THE_PAPER = ("dino-vits16", "clip-vit-base-patch32")


@dataclass(frozen=True, kw_only=True)
class ComparisonSettings:
    """What is compared, and how."""

    base: str = "tiny-flux"
    methods: tuple[str, ...] = ("qr", "lora")
    """Rows of FUSIONS, or "peft:vera" for any method of PEFT's; "lora:rank=8:style/steps=80" learns with other
    settings, the last of them for a style alone."""
    pairs: int = 27
    """Of the world; without effect with `pictures`."""
    pictures: str = ""
    """A CSV file of one's own pairs instead: see `pairs.file_pairs`."""
    split: Literal["test", "dev"] = "test"
    style_word: str = STYLE
    """What stands for the style in prompts: a word without a meaning, or one that the base knows, to be changed."""
    seeds: int = 4
    """Pictures of each pair and method."""
    first_seed: int = 0
    """Of the pictures; also the seed of learning and fusing."""
    equal: Literal["rank", "parameters"] = "rank"
    """All methods have the reference's rank, or the rank whose count of trained numbers is nearest to its."""
    rank: int | None = None
    steps: int | None = None
    """Of each adapter; None: the base's own."""
    encoders: tuple[str, ...] = ()
    """DINO, CLIP: see `evaluation.ENCODERS`; without any, `pictures` are judged by those of the paper's kind."""
    device: str = "auto"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("methods", "encoders"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_types(ComparisonSettings, as_dict(self))
        one_or_more(vars(self), "pairs", "seeds", "rank", "steps")
        if not self.style_word.strip() or self.style_word == CONTENT:
            raise ValueError(f"the style needs a word of its own in prompts, got {self.style_word!r}")
        if self.pictures and not self.encoders:  # nothing else could judge them
            object.__setattr__(self, "encoders", ENCODERS_OF_THE_PAPER)
        if self.first_seed < 0:
            raise ValueError(f"the first seed must be 0 or more, got {self.first_seed}")
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"give each method once, and at least one, got {', '.join(self.methods) or 'none'}")


def one_or_more(told: Mapping[str, Any], *names: str) -> None:
    """Raises ValueError: one of these counts is given and below 1."""
    for name in names:
        count = told.get(name)
        if count is not None and count < 1:
            raise ValueError(f"{name} must be 1 or more, got {count}")


def parse_method_spec(spec: str) -> FusionMethod:
    """NAME or NAME:[ROLE/]SETTING=VALUE:... Raises: ValueError: no such method, role or setting, or a wrong value."""
    name, *changes = spec.split(":")
    if name in ENDS:
        raise ValueError(f"{name!r} is in every table: leave it out of the methods")
    if name == "peft" and changes:
        name = f"peft:{changes.pop(0)}"
    fusion = fusion_of(name)
    told: dict[str, dict[str, Any]] = {role: dict(fusion.learn.get(role, {})) for role in ROLES}
    for change in changes:
        key, _, text = change.partition("=")
        role, of_one, key = key.rpartition("/")
        if of_one and role not in ROLES:
            raise ValueError(f"{spec}: {role!r} is no role; before a slash stands {' or '.join(ROLES)}")
        key = new_setting_name(TrainConfig, key)
        if key not in CHOSEN:
            raise ValueError(f"{spec}: {key!r} is no setting of a method here; choose among {', '.join(CHOSEN)}")
        for of_role in [role] if role else ROLES:
            told[of_role][key] = parse_override(TrainConfig, key, text)
    for of_role in told.values():
        check_types(TrainConfig, of_role)
        one_or_more(of_role, "rank", "steps", "batch_size")
    return dataclasses.replace(fusion, learn={**fusion.learn, **told})


def learning(base: Base, spec: str, fusion: FusionMethod, settings: ComparisonSettings) -> dict[str, dict[str, Any]]:
    """{role: settings of its learning}; no role for the lower end of the scale."""
    if spec == "none":
        return {}
    roles: tuple[Any, ...] = ROLES if fusion.learns_style and spec != "oracle" else ("content",)
    return {role: _role(base, role, spec, fusion, settings) for role in roles}


def _role(base: Base, role: Any, spec: str, fusion: FusionMethod, settings: ComparisonSettings) -> dict[str, Any]:
    """The reference's rank, layers, steps and batch for every method; its own learning rate; what it must have."""
    common = base.defaults.for_run(role, REFERENCE)
    told: dict[str, Any] = {name: getattr(common, name) for name in SHARED}
    told |= {name: value for name in ("rank", "steps") if (value := getattr(settings, name)) is not None}
    if spec == "oracle":
        told |= _both(base, told, settings.steps)
    reference = dict(told)
    own = fusion.settings(role)
    told |= {"seed": settings.first_seed, "dtype": settings.dtype, **own}
    if role == "style" and settings.style_word != STYLE:
        told["trigger"] = settings.style_word
    method = told.setdefault("method", REFERENCE)
    told.setdefault("learning_rate", base.defaults.for_run(role, method).learning_rate)
    if settings.equal == "parameters" and "rank" not in own:
        told["rank"] = _rank_of_equal_size(base, method, told["targets"], reference)
    if told["rank"] > (most := min(min(shape) for shape in _shapes(base, told["targets"]))):
        raise ValueError(f"rank {told['rank']} is above {most}, the smaller side of a layer that {spec} learns")
    return told


def _shapes(base: Base, targets: str) -> list[tuple[int, int]]:
    """(o, i) of the layers that learn."""
    return [(layer.out_features, layer.in_features) for layer in base.target_layers(targets).values()]


def _both(base: Base, content: dict[str, Any], steps: int | None) -> dict[str, Any]:
    """The oracle learns on the layers of both roles, for as many updates as both together."""
    style = base.defaults.for_run("style", REFERENCE)
    endings = [base.family.targets.get(x) or tuple(x.split(",")) for x in (content["targets"], style.targets)]
    union = dict.fromkeys(ending.strip() for of_role in endings for ending in of_role)
    return {"targets": ",".join(union), "steps": content["steps"] + (steps or style.steps)}


def _rank_of_equal_size(base: Base, method: str, targets: str, reference: dict[str, Any]) -> int:
    """The rank at which a method trains the count of numbers nearest to the reference's.

    Raises: ValueError: a kind of PEFT's whose size does not grow with its rank, or that cannot learn on these layers.
    """
    wanted = _trained(base, REFERENCE, reference["targets"], reference["rank"])
    ranks = range(1, min(min(shape) for shape in _shapes(base, targets)) + 1)
    count = cache(partial(_trained, base, method, targets))
    if count(ranks[0]) == count(ranks[-1]):
        raise ValueError(f"no rank makes {method} larger or smaller: leave it out of equal parameters")
    above = min(bisect_left(ranks, wanted, key=count), len(ranks) - 1)
    return min(ranks[max(above - 1, 0) : above + 1], key=lambda rank: abs(count(rank) - wanted))


def _trained(base: Base, method: str, targets: str, rank: int) -> int:
    """How many numbers learn; what PEFT has is put on for it, since its kinds share some between layers."""
    if method in METHODS:
        return sum(METHODS[method].trainable_parameters(o, i, rank) for o, i in _shapes(base, targets))
    put = initialise_peft(base.model, list(base.target_layers(targets)), parse_peft_method(method), rank, seed=0)
    try:
        return sum(factor.numel() for factor in put.trainable_factors().values())
    finally:
        put.detach()
