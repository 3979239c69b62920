"""The folder of stored results: each job's output under the job's identity, written whole or not at all, so that a
comparison can be resumed, and several can share a folder.

    adapters/<identity>.safetensors     the output of a TrainJob
    results/<identity>.json, .png       the output of a SampleJob: scores and images
"""

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..output_files import atomic
from ..safetensors_files import read_metadata
from .jobs import Job, SampleJob, TrainJob
from .run_job import ADAPTER, IMAGES, RESULT, JobOutput


@contextlib.contextmanager
def explain_damaged_file(path: Path) -> Iterator[None]:
    """Turns a ValueError in the `with` into one that names the damaged file of the store and the way out."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and the same command does it anew") from error


class ResultStore:
    """The outputs of jobs on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("adapters", "results"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def has(self, job: Job) -> bool:
        """Whether the store holds a job's whole output: its .json, which is written last, or its adapter exists.

        Raises: ValueError: an adapter's file was damaged since.
        """
        path = self._path(job, ADAPTER if isinstance(job, TrainJob) else RESULT)
        if isinstance(job, TrainJob) and path.exists():
            with explain_damaged_file(path):
                read_metadata(path)
        return path.exists()

    def write(self, job: Job, parts: JobOutput) -> None:
        """Store a job's output. Raises: OSError: a full disk; no partial file is left."""
        for ending in sorted(parts, key=lambda ending: ending == RESULT):
            with atomic(self._path(job, ending)) as file:
                file.write(parts[ending])

    def inputs(self, job: Job) -> Mapping[str, bytes]:
        """The adapter files that a job needs: {identity of the train job: bytes}."""
        needed = [x for x in (job.content, job.style) if x] if isinstance(job, SampleJob) else []
        return {x.identity: self._path(x, ADAPTER).read_bytes() for x in needed}

    def result(self, job: SampleJob) -> dict[str, Any]:
        """The stored scores of a sample job. Raises: ValueError: the file was damaged since it was written."""
        path = self._path(job, RESULT)
        with explain_damaged_file(path):
            return json.loads(path.read_text(encoding="utf-8"))

    def adapter(self, job: TrainJob) -> Path:
        """The path of a train job's adapter."""
        return self._path(job, ADAPTER)

    def pictures(self, job: SampleJob) -> Path:
        """The path of a sample job's images, side by side in one PNG."""
        return self._path(job, IMAGES)

    def count_other_results(self, jobs: Collection[SampleJob]) -> int:
        """Count of results in the folder of other jobs than these: of other settings, seeds, code or versions."""
        ours = {job.identity for job in jobs}
        return sum(path.stem not in ours for path in (self.folder / "results").glob("[!.]*.json"))

    def _path(self, job: Job, ending: str) -> Path:
        subfolder = "adapters" if isinstance(job, TrainJob) else "results"
        return self.folder / subfolder / f"{job.identity}{ending}"
