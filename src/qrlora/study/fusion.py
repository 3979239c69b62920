"""The study of content-style fusion: base x methods x pairs -> learn, fuse, draw, judge -> rows."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..baselines import Fusion
from ..baselines.record import only
from ..config import TrainConfig, as_dict
from ..config.types import check_types, parsed
from ..evaluation import open_encoder
from ..families import Base
from ..methods import METHODS
from .jobs import Draw, Job, Learn, Place, weights_of
from .pairs import Pair, Shown, file_pairs, unrelated_prompts, world_pairs
from .runners import Do, workforce
from .store import Store
from .work import ENDS, Failed, fusion_of, opened

REFERENCE = "qr"
"""The method whose rank, steps and layers on a base all others are given."""
SHARED = ("rank", "targets", "steps", "decay", "batch_size", "times", "resolution")
CHOSEN = (*SHARED, "learning_rate", "optimizer", "min_snr_gamma")
"""What "NAME:SETTING=VALUE" may set, for both roles or, as "NAME:style/SETTING=VALUE", for one."""
ROLES = ("content", "style")


@dataclass(frozen=True, kw_only=True)
class Settings:
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
    """DINO, CLIP: see `evaluation.ENCODERS`."""
    device: str = "auto"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("methods", "encoders"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_types(Settings, as_dict(self))
        for name in ("pairs", "seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.first_seed < 0:
            raise ValueError(f"the first seed must be 0 or more, got {self.first_seed}")
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"give each method once, and at least one, got {', '.join(self.methods) or 'none'}")


@dataclass(frozen=True)
class Study:
    """All jobs of a study."""

    settings: Settings
    variants: tuple[str, ...]
    """The rows of the table, the ends of the scale last."""
    pairs: tuple[Pair, ...]
    draws: tuple[Draw, ...]
    learning: dict[str, dict[str, dict[str, Any]]]
    """{variant: {role: settings}}, for the report."""

    @property
    def learns(self) -> list[Learn]:
        """Every adapter that some Draw needs, once."""
        needed = (x for draw in self.draws for x in (draw.content, draw.style) if x)
        return list({x.identity: x for x in needed}.values())


@dataclass
class Account:
    """What came of a run: nothing counts twice, nothing is missing silently."""

    study: Study
    store: Store
    done: list[Draw] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """{title: reason} of jobs of this run."""
    kept: int = 0
    """Jobs, of both kinds, that were found done."""

    @property
    def missing(self) -> list[Draw]:
        """Draws without a result, whatever the reason."""
        done = {job.identity for job in self.done}
        return [job for job in self.study.draws if job.identity not in done]

    @property
    def counts(self) -> str:
        """The sentence that every report begins with."""
        learns, total = len(self.study.learns), len(self.study.draws)
        text = f"{len(self.done)} of {total} jobs done, {len(self.missing)} missing; {learns} adapters"
        if self.failed:
            text += f"; {len(self.failed)} failed in this run"
        if foreign := self.store.foreign(self.study.draws):
            text += f"; {foreign} results of other settings, seeds or versions lie in the folder, not counted"
        return text


def plan(settings: Settings) -> Study:
    """The jobs. Opens the base and the encoders; all that can be refused is refused here.

    Raises: ValueError: an unknown method, or one that does not fit the base's family; more pairs than there are.
            OSError: no such base, encoder or file.
    """
    named = {spec: _fusion(spec) for spec in settings.methods}
    base = opened(settings.base, settings.device, settings.dtype)
    for fusion in named.values():
        if fusion.families is not None:
            only(fusion.name, fusion.families, base)
    for name in settings.encoders:
        open_encoder(name, settings.device)
    known = not settings.pictures
    pairs = world_pairs(settings.pairs, settings.split) if known else file_pairs(Path(settings.pictures))
    named |= {name: end for name, end in ENDS.items() if known or name != "oracle"}
    place = Place(settings.base, settings.device, settings.dtype, weights_of(base))
    learning = {spec: _learning(base, spec, fusion, settings) for spec, fusion in named.items()}
    seeds = tuple(range(settings.first_seed, settings.first_seed + settings.seeds))
    common: dict[str, Any] = {
        "place": place,
        "seeds": seeds,
        "unrelated": tuple(unrelated_prompts(len(seeds), known)),
        "encoders": settings.encoders,
        "learn_seed": settings.first_seed,
        "defaults": json.loads(json.dumps(dataclasses.asdict(base.defaults), default=dict)),
    }
    draws = []
    for spec, fusion in named.items():
        for pair in pairs:
            adapters = {
                role: Learn(place, shown, learning[spec][role], f"{role} of {pair.name}, {spec}")
                for role, shown in _lessons(spec, pair).items()
                if role in learning[spec]
            }
            sides = {"content": adapters.get("content"), "style": adapters.get("style")}
            draws.append(Draw(method=fusion.name, variant=spec, pair=pair, **sides, **common))
    return Study(settings, tuple(named), tuple(pairs), tuple(draws), learning)


def work(
    study: Study,
    folder: Path,
    workers: int = 1,
    ray: str = "",
    on_job: Callable[[int, int, str, str], Any] | None = None,
) -> Account:
    """Do what is not done yet: all adapters first, then all pictures. A job that fails is reported, the rest goes on.

    Args:    on_job: (jobs done, of how many, title, reason of its failure or "") after each.
    Raises:  OSError: the folder cannot be written (a full disk): what is done is kept, start again.
             ValueError: a damaged file in the folder; no Ray.
    """
    store = Store(folder)
    account = Account(study, store)
    draws = list({draw.identity: draw for draw in study.draws}.values())
    total, ended = len(study.learns) + len(draws), 0
    broken: dict[str, str] = {}

    def through(jobs: Sequence[Job], do: Do) -> None:
        nonlocal ended
        left = [job for job in jobs if not store.has(job)]
        account.kept += len(jobs) - len(left)
        ended += len(jobs) - len(left)
        for job, came in do(left, store.inputs):
            ended += 1
            reason = came.reason if isinstance(came, Failed) else ""
            if isinstance(came, Failed) and came.full:
                raise OSError(f"{job.title}: {reason}; what is done is kept, make room and start again")
            if isinstance(came, Failed):
                account.failed[job.title] = broken[job.identity] = reason
            else:
                store.write(job, came)
            if on_job is not None:
                on_job(ended, total, job.title, reason)

    finished = all(store.has(job) for job in (*study.learns, *draws))
    with workforce(1 if finished else workers, "" if finished else ray) as do:
        through(study.learns, do)
        ready = []
        for draw in draws:
            lacking = next((x for x in (draw.content, draw.style) if x and x.identity in broken), None)
            if lacking is None:
                ready.append(draw)
            else:
                account.failed[draw.title] = f"its adapter failed: {lacking.title}"
        through(ready, do)
    account.done = [draw for draw in study.draws if store.has(draw)]
    return account


def _lessons(spec: str, pair: Pair) -> dict[str, Shown]:
    """{role: what is learnt of}; the oracle's only lesson is the truth."""
    if spec == "oracle":
        assert pair.truth is not None
        return {"content": pair.truth}
    return {"content": pair.content, "style": pair.style}


def _fusion(spec: str) -> Fusion:
    """NAME or NAME:[ROLE/]SETTING=VALUE:... Raises: ValueError: no such method, role or setting."""
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
        if key not in CHOSEN:
            raise ValueError(f"{spec}: {key!r} is no setting of a method here; choose among {', '.join(CHOSEN)}")
        for of_role in [role] if role else ROLES:
            told[of_role][key] = parsed(TrainConfig, key, text)
    for of_role in told.values():
        check_types(TrainConfig, of_role)
    return dataclasses.replace(fusion, learn={**fusion.learn, **told})


def _learning(base: Base, spec: str, fusion: Fusion, settings: Settings) -> dict[str, dict[str, Any]]:
    """{role: settings of its learning}; no role for the lower end of the scale."""
    if spec == "none":
        return {}
    roles: tuple[Any, ...] = ROLES if fusion.learns_style and spec != "oracle" else ("content",)
    return {role: _role(base, role, spec, fusion, settings) for role in roles}


def _role(base: Base, role: Any, spec: str, fusion: Fusion, settings: Settings) -> dict[str, Any]:
    """The reference's rank, layers, steps and batch for every method; its own learning rate; what it must have."""
    common = base.defaults.for_run(role, REFERENCE)
    told: dict[str, Any] = {name: getattr(common, name) for name in SHARED}
    told |= {name: value for name in ("rank", "steps") if (value := getattr(settings, name)) is not None}
    if spec == "oracle":
        told |= _both(base, told, settings.steps)
    reference = dict(told)
    own = fusion.settings(role)
    told |= {"seed": settings.first_seed, "dtype": settings.dtype, **own}
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

    Raises: ValueError: a method whose count nobody knows before it learns.
    """
    if method not in METHODS:
        raise ValueError(f"how many numbers {method} trains shows when it learns: leave it out of equal parameters")

    def trained(name: str, shapes: list[tuple[int, int]], rank: int) -> int:
        return sum(METHODS[name].trainable_parameters(o, i, rank) for o, i in shapes)

    wanted = trained(REFERENCE, _shapes(base, reference["targets"]), reference["rank"])
    own = _shapes(base, targets)
    ranks = range(1, min(min(shape) for shape in own) + 1)
    return min(ranks, key=lambda rank: abs(trained(method, own, rank) - wanted))
