"""What every reproduction needs: an open base, pairs of pictures, adapters that are learnt once and kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..adapter import Adapter
from ..comparison.fusion_comparison import RunSummary, plan, work
from ..comparison.image_pairs import CaptionedImage, Pair, world_pairs
from ..comparison.jobs import BaseSpec, TrainJob, base_digest
from ..comparison.result_store import Store
from ..comparison.run_job import JobFailure, opened
from ..comparison.settings import REFERENCE, SHARED, ComparisonSettings, one_or_more
from ..comparison.workers import worker_pool
from ..families import Base
from ..files import load

Key = TypeVar("Key")


@dataclass(frozen=True, kw_only=True)
class ReproductionRequest:
    """How a result is to be reproduced."""

    base: str = ""
    """"": the result's own."""
    pairs: int = 27
    seed: int = 0
    rank: int | None = None
    """None: the base's own; so are the steps."""
    steps: int | None = None
    encoders: tuple[str, ...] = ()
    """DINO, CLIP, where a result has their scores: see `evaluation.ENCODERS`."""
    ratings: str = ""
    """For table 1: levels.csv of a survey's report, whose first question stands in the row "user study"."""
    folder: Path = Path("out/reproduce")
    workers: int = 1
    ray: str = ""
    device: str = "auto"
    on_job: Callable[[int, int, str, str], Any] | None = None
    """(jobs done, of how many, title, reason of a failure or "")."""

    def __post_init__(self) -> None:
        one_or_more(vars(self), "pairs", "rank", "steps", "workers")

    @property
    def opened(self) -> Base:
        """The base, opened once in a process."""
        return opened(self.base, self.device, "float32")

    def world(self) -> list[Pair]:
        """The pairs of held-out pictures. Raises: ValueError: more than there are."""
        return world_pairs(self.pairs)

    def study(self, methods: Sequence[str]) -> RunSummary:
        """The study of fusion with some methods, of which `qrlora compare` in the same folder would find all jobs done.

        Raises: ValueError: some jobs failed; the others are kept, and the same command tries again.
        """
        told: dict[str, Any] = {"base": self.base, "pairs": self.pairs, "rank": self.rank, "steps": self.steps}
        told |= {"first_seed": self.seed, "encoders": self.encoders, "device": self.device}
        account = work(
            plan(ComparisonSettings(methods=tuple(methods), **told)), self.folder, self.workers, self.ray, self.on_job
        )
        if account.missing:
            title, reason = next(iter(account.failed.items()))
            raise ValueError(f"{account.counts}; such as {title}: {reason}")
        return account

    def lesson(self, shown: CaptionedImage, role: str, method: str, seed: int = 0, layers_of: str = "") -> TrainJob:
        """The job of learning from one picture.

        Args: layers_of: the role whose layers and steps are taken, where both are to be the same; "": its own.
        """
        base = self.opened
        own = base.defaults.for_run(layers_of or role, REFERENCE)
        told: dict[str, Any] = {name: getattr(own, name) for name in SHARED}
        told |= {name: value for name in ("rank", "steps") if (value := getattr(self, name)) is not None}
        rate = base.defaults.for_run(layers_of or role, method).learning_rate
        told |= {"role": role, "method": method, "learning_rate": rate, "seed": self.seed + seed}
        place = BaseSpec(self.base, self.device, "float32", base_digest(base))
        return TrainJob(place, shown, told, f"{method}, {role} of {shown.content} in {shown.style}")

    def learnt(self, jobs: Mapping[Key, TrainJob]) -> dict[Key, Adapter]:
        """The adapters of some jobs; those that are in the folder are not learnt again.

        Raises: ValueError: some failed; the others are kept, and the same command tries again.
        """
        store, failed = Store(self.folder), {}
        unique = {job.identity: job for job in jobs.values()}
        left = [job for job in unique.values() if not store.has(job)]
        ended = len(unique) - len(left)
        with worker_pool(self.workers if left else 1, self.ray if left else "") as do:
            for job, came in do(left, store.inputs):
                ended += 1
                if isinstance(came, JobFailure):
                    failed[job.title] = came.reason
                else:
                    store.write(job, came)
                if self.on_job is not None:
                    self.on_job(ended, len(unique), job.title, failed.get(job.title, ""))
        if failed:
            title, reason = next(iter(failed.items()))
            raise ValueError(f"{len(failed)} of {len(unique)} adapters failed, such as {title}: {reason}")
        return {key: load(store.adapter(job)) for key, job in jobs.items()}
