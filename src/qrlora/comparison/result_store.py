"""A study's folder: each job's result under the job's identity, whole or not at all, so that a study may be stopped,
started again, and share a folder with others without mixing.

    adapters/<identity>.safetensors     what a Learn job made
    results/<identity>.json, .png       what a Draw job measured and drew
"""

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..output_files import atomic
from ..safetensors_files import read_metadata
from .jobs import Job, SampleJob, TrainJob
from .run_job import ADAPTER, PICTURES, RESULT, JobOutput


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """A ValueError in the `with` names the file and the way out."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and the same command does it anew") from error


class Store:
    """Results on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("adapters", "results"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def has(self, job: Job) -> bool:
        """Whether a job is done. The .json comes last, and an adapter's file appears whole.

        Raises: ValueError: an adapter's file was damaged since.
        """
        path = self._path(job, ADAPTER if isinstance(job, TrainJob) else RESULT)
        if isinstance(job, TrainJob) and path.exists():
            with readable(path):
                read_metadata(path)
        return path.exists()

    def write(self, job: Job, parts: JobOutput) -> None:
        """Raises: OSError: a full disk; nothing half is left."""
        for ending in sorted(parts, key=lambda ending: ending == RESULT):
            with atomic(self._path(job, ending)) as file:
                file.write(parts[ending])

    def inputs(self, job: Job) -> Mapping[str, bytes]:
        """The adapters that a job needs: {identity: file}."""
        needed = [x for x in (job.content, job.style) if x] if isinstance(job, SampleJob) else []
        return {x.identity: self._path(x, ADAPTER).read_bytes() for x in needed}

    def result(self, job: SampleJob) -> dict[str, Any]:
        """What a Draw job measured. Raises: ValueError: the file was damaged since it was written."""
        path = self._path(job, RESULT)
        with readable(path):
            return json.loads(path.read_text(encoding="utf-8"))

    def adapter(self, job: TrainJob) -> Path:
        """The file that a Learn job made."""
        return self._path(job, ADAPTER)

    def pictures(self, job: SampleJob) -> Path:
        """The strip of a Draw job's pictures."""
        return self._path(job, PICTURES)

    def foreign(self, jobs: Collection[SampleJob]) -> int:
        """Results in the folder that are not of these jobs: of other settings, seeds, code or versions."""
        ours = {job.identity for job in jobs}
        return sum(path.stem not in ours for path in (self.folder / "results").glob("[!.]*.json"))

    def _path(self, job: Job, ending: str) -> Path:
        room = "adapters" if isinstance(job, TrainJob) else "results"
        return self.folder / room / f"{job.identity}{ending}"
