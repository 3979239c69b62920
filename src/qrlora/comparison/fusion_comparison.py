"""The study of content-style fusion: base x methods x pairs -> learn, fuse, draw, judge -> rows."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..baselines.fusion_method import only
from ..evaluation import open_encoder
from .image_pairs import CaptionedImage, Pair, file_pairs, unrelated_prompts, world_pairs
from .jobs import BaseSpec, Job, SampleJob, TrainJob, base_digest
from .result_store import Store
from .run_job import ENDS, JobFailure, opened
from .settings import ComparisonSettings, learning, parse_method_spec
from .workers import Do, worker_pool


@dataclass(frozen=True)
class Comparison:
    """All jobs of a study."""

    settings: ComparisonSettings
    variants: tuple[str, ...]
    """The rows of the table, the ends of the scale last."""
    pairs: tuple[Pair, ...]
    draws: tuple[SampleJob, ...]
    learning: dict[str, dict[str, dict[str, Any]]]
    """{variant: {role: settings}}, for the report."""

    @property
    def learns(self) -> list[TrainJob]:
        """Every adapter that some Draw needs, once."""
        needed = (x for draw in self.draws for x in (draw.content, draw.style) if x)
        return list({x.identity: x for x in needed}.values())


@dataclass
class RunSummary:
    """What came of a run: nothing counts twice, nothing is missing silently."""

    study: Comparison
    store: Store
    done: list[SampleJob] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """{title: reason} of jobs of this run."""
    kept: int = 0
    """Jobs, of both kinds, that were found done."""

    @property
    def missing(self) -> list[SampleJob]:
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


def plan(settings: ComparisonSettings) -> Comparison:
    """The jobs. Opens the base and the encoders; all that can be refused is refused here.

    Raises: ValueError: an unknown method, or one that does not fit the base's family; more pairs than there are.
            OSError: no such base, encoder or file.
    """
    named = {spec: parse_method_spec(spec) for spec in settings.methods}
    known = not settings.pictures
    word = settings.style_word
    pairs = world_pairs(settings.pairs, settings.split, word) if known else file_pairs(Path(settings.pictures), word)
    base = opened(settings.base, settings.device, settings.dtype)
    for fusion in named.values():
        if fusion.families is not None:
            only(fusion.name, fusion.families, base)
    seen_by = tuple(open_encoder(name, settings.device).identity for name in settings.encoders)
    named |= {name: end for name, end in ENDS.items() if known or name != "oracle"}
    place = BaseSpec(settings.base, settings.device, settings.dtype, base_digest(base))
    told = {spec: learning(base, spec, fusion, settings) for spec, fusion in named.items()}
    seeds = tuple(range(settings.first_seed, settings.first_seed + settings.seeds))
    common: dict[str, Any] = {
        "place": place,
        "seeds": seeds,
        "unrelated": tuple(unrelated_prompts(len(seeds), known, word)),
        "encoders": settings.encoders,
        "encoder_identities": seen_by,
        "learn_seed": settings.first_seed,
        "defaults": json.loads(json.dumps(dataclasses.asdict(base.defaults), default=dict)),
    }
    draws = []
    for spec, fusion in named.items():
        for pair in pairs:
            adapters = {
                role: TrainJob(place, shown, told[spec][role], f"{role} of {pair.name}, {spec}")
                for role, shown in _lessons(spec, pair).items()
                if role in told[spec]
            }
            sides = {"content": adapters.get("content"), "style": adapters.get("style")}
            draws.append(SampleJob(method=fusion.name, variant=spec, pair=pair, **sides, **common))
    return Comparison(settings, tuple(named), tuple(pairs), tuple(draws), told)


def work(
    study: Comparison,
    folder: Path,
    workers: int = 1,
    ray: str = "",
    on_job: Callable[[int, int, str, str], Any] | None = None,
) -> RunSummary:
    """Do what is not done yet: all adapters first, then all pictures. A job that fails is reported, the rest goes on.

    Args:    on_job: (jobs done, of how many, title, reason of its failure or "") after each.
    Raises:  OSError: the folder cannot be written (a full disk): what is done is kept, start again.
             ValueError: a damaged file in the folder; no Ray.
    """
    store = Store(folder)
    account = RunSummary(study, store)
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
            reason = came.reason if isinstance(came, JobFailure) else ""
            if isinstance(came, JobFailure) and came.full:
                raise OSError(f"{job.title}: {reason}; what is done is kept, make room and start again")
            if isinstance(came, JobFailure):
                account.failed[job.title] = broken[job.identity] = reason
            else:
                store.write(job, came)
            if on_job is not None:
                on_job(ended, total, job.title, reason)

    finished = all(store.has(job) for job in (*study.learns, *draws))
    with worker_pool(1 if finished else workers, "" if finished else ray) as do:
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


def _lessons(spec: str, pair: Pair) -> dict[str, CaptionedImage]:
    """{role: what is learnt of}; the oracle's only lesson is the truth."""
    if spec == "oracle":
        assert pair.truth is not None
        return {"content": pair.truth}
    return {"content": pair.content, "style": pair.style}
