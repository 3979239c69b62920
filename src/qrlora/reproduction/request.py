"""ReproductionRequest: the settings of a reproduction, with its base, image pairs and stored adapters."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..adapter import Adapter
from ..comparison.crossed_settings import Truth
from ..comparison.fusion_comparison import RunSummary, plan_comparison, run_comparison
from ..comparison.image_pairs import CaptionedImage, Pair, Split, world_pairs
from ..comparison.jobs import BaseSpec, TrainJob, base_digest
from ..comparison.result_store import ResultStore
from ..comparison.run_job import open_base_once
from ..comparison.settings import ComparisonSettings, check_counts
from ..comparison.training_settings import REFERENCE_METHOD, SHARED_SETTINGS
from ..comparison.workers import run_and_keep, worker_pool
from ..config.type_checks import check_types
from ..families import Base
from ..files import load
from ..world.edition import check_edition_of_base

Key = TypeVar("Key")


@dataclass(frozen=True, kw_only=True)
class ReproductionRequest:
    """The settings that a result of the paper is reproduced with."""

    base: str = ""
    """The base model; "": the result's default."""
    pairs: int = 27
    seed: int = 0
    rank: int | None = None
    """None: the base's default, as for `steps`."""
    steps: int | None = None
    encoders: tuple[str, ...] = ()
    """Vision encoders (DINO, CLIP), for results with their scores: see `evaluation.ENCODERS`."""
    ratings: str = ""
    """For table 1: levels.csv of a survey's report, whose first question stands in the row "user study"."""
    split: Split = "test"
    """For crossed and attributes: the contents and style images, those that are kept for tests or those to tune on."""
    truth: Truth = "exact"
    """For crossed: how true images are known (`CrossedSettings.truth`)."""
    methods: tuple[str, ...] = ()
    """For crossed and attributes: the methods that are run, as specs of `method_specs`; none: all of the findings."""
    folder: Path = Path("out/reproduce")
    workers: int = 1
    ray: str = ""
    device: str = "auto"
    on_job: Callable[[int, int, str, str], Any] | None = None
    """(jobs done, of how many, title, reason of a failure or "")."""

    def __post_init__(self) -> None:
        check_types(ReproductionRequest, {name: getattr(self, name) for name in ("split", "truth")})
        check_counts(vars(self), "pairs", "rank", "steps", "workers")

    @property
    def base_model(self) -> Base:
        """The open base, one per process. Raises: ValueError: it is of another edition of the benchmark."""
        base = open_base_once(self.base, self.device, "float32")
        check_edition_of_base(base)
        return base

    def spec(self, method: str) -> str:
        """The spec of a method (`method_specs`) with the request's rank and steps, where it has none of its own."""
        given = {name: getattr(self, name) for name in ("rank", "steps") if f":{name}=" not in method}
        return method + "".join(f":{name}={value}" for name, value in given.items() if value is not None)

    def run_crossed(self, runs: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
        """Run the methods of a crossed comparison, one after the other, with a word to `on_job` after each.

        Args:    runs: {label in the rows: the work}.
        Returns: {label: the seconds that it took}.
        """
        seconds = {}
        for label, run in runs.items():
            started = time.monotonic()
            run()
            seconds[label] = time.monotonic() - started
            if self.on_job is not None:
                self.on_job(len(seconds), len(runs), label, "")
        return seconds

    def benchmark_pairs(self) -> list[Pair]:
        """The benchmark's image pairs. Raises: ValueError: more than there are."""
        return world_pairs(self.pairs)

    def run_fusion_comparison(self, methods: Sequence[str]) -> RunSummary:
        """Run the request's fusion comparison of some methods; `qrlora compare` in the same folder finds its jobs done.

        Raises: ValueError: some jobs failed; the others are kept, and the same command tries again.
        """
        own: dict[str, Any] = {"base": self.base, "pairs": self.pairs, "rank": self.rank, "steps": self.steps}
        own |= {"first_seed": self.seed, "encoders": self.encoders, "device": self.device}
        comparison = plan_comparison(ComparisonSettings(methods=tuple(methods), **own))
        summary = run_comparison(comparison, self.folder, self.workers, self.ray, self.on_job)
        if summary.missing:
            title, reason = next(iter(summary.failed.items()))
            raise ValueError(f"{summary.counts}; such as {title}: {reason}")
        return summary

    def train_job(self, image: CaptionedImage, role: str, method: str, seed: int = 0, layers_of: str = "") -> TrainJob:
        """The job that trains one adapter of this request on one image.

        Args: seed: added to the request's.  layers_of: the role whose layers and steps are used, where two adapters
              must have the same; "": its own.
        """
        base = self.base_model
        default = base.defaults.for_run(layers_of or role, REFERENCE_METHOD)
        settings: dict[str, Any] = {name: getattr(default, name) for name in SHARED_SETTINGS}
        settings |= {name: value for name in ("rank", "steps") if (value := getattr(self, name)) is not None}
        rate = base.defaults.for_run(layers_of or role, method).learning_rate
        settings |= {"role": role, "method": method, "learning_rate": rate, "seed": self.seed + seed}
        base_spec = BaseSpec(self.base, self.device, "float32", base_digest(base))
        return TrainJob(base_spec, image, settings, f"{method}, {role} of {image.content} in {image.style}")

    def train_or_load_adapters(self, jobs: Mapping[Key, TrainJob]) -> dict[Key, Adapter]:
        """The adapters of this request's train jobs, loaded from the folder or trained and stored there.

        Raises: ValueError: some failed; the others are kept, and the same command tries again.  OSError: a full disk.
        """
        store, failed = ResultStore(self.folder), {}
        unique = {job.identity: job for job in jobs.values()}
        left = [job for job in unique.values() if not store.has(job)]
        ended = len(unique) - len(left)
        with worker_pool(self.workers if left else 1, self.ray if left else "") as run_on_workers:
            for job, reason in run_and_keep(left, store, run_on_workers):
                ended += 1
                if reason:
                    failed[job.title] = reason
                if self.on_job is not None:
                    self.on_job(ended, len(unique), job.title, reason)
        if failed:
            title, reason = next(iter(failed.items()))
            raise ValueError(f"{len(failed)} of {len(unique)} adapters failed, such as {title}: {reason}")
        return {key: load(store.adapter(job)) for key, job in jobs.items()}
