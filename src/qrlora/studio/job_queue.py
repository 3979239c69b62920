"""Starts what waits: one process a device, and one beside them for work on files."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from .generation_queue import GenerationQueue
from .jobs import LOCKS, Job, acquire_job_lock
from .work_folder import WorkFolder

FILES = "files"
"""Where jobs run that need no device."""
NEED_A_DEVICE = ("train",)
"""Kinds of jobs that do."""
PAUSE, REST = 0.2, 1.0
"""Seconds between two looks, and where nothing runs or waits: what pages do is looked at at once."""


class JobQueue:
    """The queue of a folder. All that it knows is in the jobs' folders: another server can take it over."""

    def __init__(self, work: WorkFolder, devices: Sequence[str], drawings: GenerationQueue):
        self.work, self.devices, self.drawings = work, list(devices), drawings
        self.problem = ""
        """Why nothing can be started, "" while it can."""
        self.seen: dict[str, Any] = {}
        """The state of both queues and {job's id: how far it is} at the last look: pages show anew what has changed."""
        self._children: list[subprocess.Popen] = []
        self._closing, self._look = threading.Event(), threading.Event()
        drawings.on_change = self.wake
        self._thread = threading.Thread(target=self._start_jobs_until_closed, name="queue")

    def start(self) -> None:
        """Look for work until `close`."""
        self._thread.start()

    def wake(self) -> None:
        """Look at once."""
        self._look.set()

    def close(self) -> None:
        """Start nothing more. What runs goes on without a server."""
        self._closing.set()
        self.wake()
        self._thread.join()

    def _start_jobs_until_closed(self) -> None:
        """The thread of the job queue: start waiting jobs, again and again."""
        while not self._closing.is_set():
            busy = True
            try:
                busy = self.start_waiting_jobs()
                self.problem = ""
            except FileNotFoundError:
                pass  # a job went to the bin meanwhile
            except OSError as error:  # such as a full disk: said on the page until it is over
                self.problem = f"{error.filename or self.work.folder}: {error.strerror or error}"
            self.seen = {**self.seen, "queue": self.problem}
            self._look.wait(PAUSE if busy else REST)
            self._look.clear()

    def start_waiting_jobs(self) -> bool:
        """Start the longest-waiting job of each device where none runs. Generating images makes room for a training.

        Returns: whether a job waits or runs.
        """
        self._children = [child for child in self._children if child.poll() is None]  # which also buries the dead
        drawings = (self.drawings.count, dict(self.drawings.failed), self.drawings.paused)
        jobs = self.work.each_job(lambda job: (job, job.state, job.size))
        self.seen = {"drawings": drawings, **{job.id: (state, size) for job, state, size in jobs}}
        busy = {job.device for job, state, _ in jobs if state == "running"}
        waiting = [job for job, state, _ in jobs if state == "waiting"]
        waiting.sort(key=lambda job: (job.last_event["time"], job.created))  # the first is in milliseconds
        trainings = [job for job in waiting if job.kind in NEED_A_DEVICE]
        self.drawings.pause(bool(trainings) or self.devices[0] in busy)
        for device in reversed(self.devices):  # pictures are drawn on the first
            if trainings and device not in busy and (device != self.devices[0] or self.drawings.closed):
                self._start_job_worker(trainings.pop(0), device)
        on_files = [job for job in waiting if job.kind not in NEED_A_DEVICE]
        if on_files and FILES not in busy:
            self._start_job_worker(on_files[0], FILES)
        return bool(busy or waiting)

    def _start_job_worker(self, job: Job, device: str) -> None:
        """Start a job's worker process, which inherits the job's lock: held from now to the process's end."""
        with LOCKS:  # who stops it sees it in the queue, or started
            if (lock := acquire_job_lock(job)) is None:
                return
            try:
                job.add_event("start", device=device)
            except OSError:
                os.close(lock)
                raise
        try:
            with (job.folder / "log.txt").open("ab") as log:
                child = subprocess.Popen(
                    [sys.executable, "-m", "qrlora.studio.job_worker", str(job.folder), device],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[lock],
                    start_new_session=True,  # Ctrl-C in the server's terminal is not for it
                )
            os.pwrite(lock, str(child.pid).encode(), 0)
            self._children.append(child)
        finally:
            os.close(lock)
