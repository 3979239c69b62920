"""Plan and run a comparison of fusion methods: train adapters, fuse each pair, sample images, score them."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..baselines.fusion_method import check_family
from ..evaluation import open_encoder
from ..sampling_arguments import check_images_fit_memory
from ..world.edition import check_edition_of_base
from .decomposition import decomposed_prompts
from .image_pairs import CaptionedImage, Pair, pairs_from_csv, unrelated_prompts, world_pairs
from .jobs import BaseSpec, Job, SampleJob, TrainJob, base_digest
from .method_specs import parse_method_spec
from .result_store import ResultStore
from .run_job import BOUNDS, open_base_once
from .settings import ComparisonSettings
from .training_settings import training_settings
from .workers import RunJobs, run_and_keep, worker_pool


@dataclass(frozen=True)
class Comparison:
    """A planned comparison: all its jobs."""

    settings: ComparisonSettings
    variants: tuple[str, ...]
    """The table's rows: methods as they were given, then the bounds."""
    pairs: tuple[Pair, ...]
    sample_jobs: tuple[SampleJob, ...]
    training_settings: dict[str, dict[str, dict[str, Any]]]
    """{variant: {role: settings of TrainConfig}}, for the report."""

    @property
    def train_jobs(self) -> list[TrainJob]:
        """The training of every adapter that some sample job needs, once each."""
        needed = (x for job in self.sample_jobs for x in (job.content, job.style) if x)
        return list({x.identity: x for x in needed}.values())


@dataclass
class RunSummary:
    """Which jobs of a comparison are done, which failed, and which are missing."""

    comparison: Comparison
    store: ResultStore
    done: list[SampleJob] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """{title: reason} of jobs that failed in this run."""
    found_done: int = 0
    """Count of jobs, of both kinds, whose results were in the folder before this run."""

    @property
    def missing(self) -> list[SampleJob]:
        """Sample jobs without a result, for whatever reason."""
        done = {job.identity for job in self.done}
        return [job for job in self.comparison.sample_jobs if job.identity not in done]

    @property
    def counts(self) -> str:
        """The counts of jobs as a sentence, with which every report begins."""
        adapters, total = len(self.comparison.train_jobs), len(self.comparison.sample_jobs)
        text = f"{len(self.done)} of {total} jobs done, {len(self.missing)} missing; {adapters} adapters"
        if self.failed:
            text += f"; {len(self.failed)} failed in this run"
        if others := self.store.count_other_results(self.comparison.sample_jobs):
            text += f"; {others} results of other settings, seeds or versions lie in the folder, not counted"
        return text


def plan_comparison(settings: ComparisonSettings) -> Comparison:
    """The jobs of a comparison. Opens the base and the encoders; whatever can be refused is refused here.

    Raises: ValueError: an unknown method, or one that does not fit the base's family; more pairs than there are.
            OSError: no such base, encoder or file.
    """
    named = {spec: parse_method_spec(spec) for spec in settings.methods}
    known = not settings.pictures
    word = settings.style_word
    pairs = (
        world_pairs(settings.pairs, settings.split, word) if known else pairs_from_csv(Path(settings.pictures), word)
    )
    base = open_base_once(settings.base, settings.device, settings.dtype)
    check_images_fit_memory(base, settings.seeds)
    if known:
        check_edition_of_base(base)
    for fusion in named.values():
        if fusion.families is not None:
            check_family(fusion.name, fusion.families, base)
    encoder_identities = tuple(open_encoder(name, settings.device).identity for name in settings.encoders)
    named |= {name: bound for name, bound in BOUNDS.items() if known or name != "oracle"}
    base_spec = BaseSpec(settings.base, settings.device, settings.dtype, base_digest(base))
    by_variant = {spec: training_settings(base, spec, fusion, settings) for spec, fusion in named.items()}
    seeds = tuple(range(settings.first_seed, settings.first_seed + settings.seeds))
    common: dict[str, Any] = {
        "base_spec": base_spec,
        "seeds": seeds,
        "unrelated": tuple(unrelated_prompts(len(seeds), known, word)),
        "encoders": settings.encoders,
        "encoder_identities": encoder_identities,
        "training_seed": settings.first_seed,
        "defaults": json.loads(json.dumps(dataclasses.asdict(base.defaults), default=dict)),
    }
    sample_jobs = []
    for spec, fusion in named.items():
        for pair in pairs:
            adapters = {
                role: TrainJob(base_spec, image, by_variant[spec][role], f"{role} of {pair.name}, {spec}")
                for role, image in _training_images(spec, pair).items()
                if role in by_variant[spec]
            }
            both = {"content": adapters.get("content"), "style": adapters.get("style")}
            parts = (
                decomposed_prompts(pair, [*adapters], seeds, word) if settings.decompose and spec != "oracle" else ()
            )
            job = SampleJob(method=fusion.name, variant=spec, pair=pair, decomposed=parts, **both, **common)
            sample_jobs.append(job)
    return Comparison(settings, tuple(named), tuple(pairs), tuple(sample_jobs), by_variant)


def run_comparison(
    comparison: Comparison,
    folder: Path,
    workers: int = 1,
    ray: str = "",
    on_job: Callable[[int, int, str, str], Any] | None = None,
) -> RunSummary:
    """Run the jobs that have no result yet: first all training, then all sampling. A failed job does not stop the rest.

    Args:    folder: where results are stored.  workers, ray: see `workers.worker_pool`.
             on_job: (jobs done, of how many, title, reason of its failure or "") after each job.
    Raises:  OSError: the folder cannot be written (a full disk): results are kept, the same call continues.
             ValueError: a damaged file in the folder; no Ray.
    """
    store = ResultStore(folder)
    summary = RunSummary(comparison, store)
    sample_jobs = list({job.identity: job for job in comparison.sample_jobs}.values())
    total, ended = len(comparison.train_jobs) + len(sample_jobs), 0
    failed_adapters: set[str] = set()

    def run_jobs(jobs: Sequence[Job], run_on_workers: RunJobs) -> None:
        """Run those of the comparison's jobs that have no result yet, and keep their results."""
        nonlocal ended
        left = [job for job in jobs if not store.has(job)]
        summary.found_done += len(jobs) - len(left)
        ended += len(jobs) - len(left)
        for job, reason in run_and_keep(left, store, run_on_workers):
            ended += 1
            if reason:
                summary.failed[job.title] = reason
                failed_adapters.add(job.identity)
            if on_job is not None:
                on_job(ended, total, job.title, reason)

    finished = all(store.has(job) for job in (*comparison.train_jobs, *sample_jobs))
    with worker_pool(1 if finished else workers, "" if finished else ray) as run_on_workers:
        run_jobs(comparison.train_jobs, run_on_workers)
        ready = []
        for job in sample_jobs:
            failed = next((x for x in (job.content, job.style) if x and x.identity in failed_adapters), None)
            if failed is None:
                ready.append(job)
            else:
                summary.failed[job.title] = f"its adapter failed: {failed.title}"
        run_jobs(ready, run_on_workers)
    summary.done = [job for job in comparison.sample_jobs if store.has(job)]
    return summary


def _training_images(spec: str, pair: Pair) -> dict[str, CaptionedImage]:
    """{role: its training image} for a compared fusion method; the oracle is trained on the true fused image alone."""
    if spec == "oracle":
        assert pair.truth is not None
        return {"content": pair.truth}
    return {"content": pair.content, "style": pair.style}
