"""Starts what waits: one process a device, and one beside them for work on files."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence

from .generation_queue import GenerationQueue
from .jobs import Job, acquire_job_lock
from .work_folder import WorkFolder

FILES = "files"
"""Where jobs run that need no device."""
NEED_A_DEVICE = ("train",)
"""Kinds of jobs that do."""
PAUSE = 0.2
"""Seconds between two looks."""


class JobQueue:
    """The queue of a folder. All that it knows is in the jobs' folders: another server can take it over."""

    def __init__(self, work: WorkFolder, devices: Sequence[str], drawings: GenerationQueue):
        self.work, self.devices, self.drawings = work, list(devices), drawings
        self.problem = ""
        """Why nothing can be started, "" while it can."""
        self._children: list[subprocess.Popen] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._start_jobs_until_closed, name="queue")

    def start(self) -> None:
        """Look for work until `close`."""
        self._thread.start()

    def close(self) -> None:
        """Start nothing more. What runs goes on without a server."""
        self._closing.set()
        self._thread.join()

    def _start_jobs_until_closed(self) -> None:
        """The thread of the job queue: start waiting jobs, again and again."""
        while not self._closing.wait(PAUSE):
            try:
                self.start_waiting_jobs()
                self.problem = ""
            except FileNotFoundError:
                continue  # a job went to the bin meanwhile
            except OSError as error:  # such as a full disk: said on the page until it is over
                self.problem = f"{error.filename or self.work.folder}: {error.strerror or error}"

    def start_waiting_jobs(self) -> None:
        """Start the longest-waiting job of each device where none runs. Generating images makes room for a training."""
        self._children = [child for child in self._children if child.poll() is None]  # which also buries the dead
        jobs = self.work.jobs()
        states = {job.id: job.state for job in jobs}
        busy = {job.device for job in jobs if states[job.id] == "running"}
        waiting = [job for job in jobs if states[job.id] == "waiting"]
        waiting.sort(key=lambda job: (job.events[-1]["time"], job.created))  # the first is in milliseconds
        trainings = [job for job in waiting if job.kind in NEED_A_DEVICE]
        self.drawings.pause(bool(trainings) or self.devices[0] in busy)
        for device in reversed(self.devices):  # pictures are drawn on the first
            if trainings and device not in busy and (device != self.devices[0] or self.drawings.closed):
                self._start_job_worker(trainings.pop(0), device)
        on_files = [job for job in waiting if job.kind not in NEED_A_DEVICE]
        if on_files and FILES not in busy:
            self._start_job_worker(on_files[0], FILES)

    def _start_job_worker(self, job: Job, device: str) -> None:
        """Start a job's worker process, which inherits the job's lock: held from now to the process's end."""
        if (lock := acquire_job_lock(job)) is None:
            return
        try:
            job.add_event("start", device=device)
            with (job.folder / "log.txt").open("ab") as log:
                child = subprocess.Popen(
                    [sys.executable, "-m", "qrlora.studio.job_worker", str(job.folder), device],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[lock],
                    start_new_session=True,  # Ctrl-C in the server's terminal is not for it
                )
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(child.pid).encode(), 0)
            self._children.append(child)
        finally:
            os.close(lock)
