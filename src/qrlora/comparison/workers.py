"""Run jobs in this process, in processes of this machine, or on a Ray cluster, with the same results. [ray]

Each is a context manager that yields a function (jobs, inputs) -> iterator of (job, its output) as jobs end; workers
live as long as the `with`. A job's inputs are read when it starts, so that they need not all be in memory; only bytes
are sent to workers, so that machines need not share a disk.
"""

import contextlib
import logging
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from .. import optional_dependencies
from ..devices import check_fits_memory
from ..estimate.device_memory import private_bytes
from .jobs import Job
from .result_store import ResultStore
from .run_job import JobFailure, JobOutput, run_job

AdapterFiles = Callable[[Job], Mapping[str, bytes]]
RunJobs = Callable[[Iterable[Job], AdapterFiles], Iterator[tuple[Job, JobOutput | JobFailure]]]


def worker_pool(workers: int = 1, ray: str = "") -> contextlib.AbstractContextManager[RunJobs]:
    """The Ray cluster at an address ("local": started on this machine), else so many processes, else this process.

    Raises: ValueError: Ray is not installed, or there is no cluster at the address; more processes than the machine's
            memory holds, each of which opens the base as this one has.
    """
    if not ray:
        needed = workers * private_bytes()
        check_fits_memory(f"{workers} workers", needed, torch.device("cpu"), "start fewer")
    return on_ray_cluster(ray) if ray else in_processes(workers) if workers > 1 else in_this_process()


def run_and_keep(jobs: Iterable[Job], store: ResultStore, run_on_workers: RunJobs) -> Iterator[tuple[Job, str]]:
    """Run jobs and keep their outputs in a store: each job as it ends, with the reason of its failure or "". A failed
    job does not stop the rest.

    Raises: OSError: a full disk, which the next job would meet as well; what is done is kept.
    """
    for job, outcome in run_on_workers(jobs, store.inputs):
        if not isinstance(outcome, JobFailure):
            store.write(job, outcome)
        elif outcome.disk_full:
            raise OSError(f"{job.title}: {outcome.reason}; what is done is kept, make room and start again")
        yield job, outcome.reason if isinstance(outcome, JobFailure) else ""


def with_inputs(jobs: Iterable[Job], inputs: AdapterFiles) -> Iterator[tuple[Job, Mapping[str, bytes] | JobFailure]]:
    """Each job with its inputs, read when it is its turn, or with the failure to read them, which is no worker's."""
    for job in jobs:
        try:
            read = inputs(job)
        except OSError as error:
            read = JobFailure(f"its adapters cannot be read: {error}")
        yield job, read


@contextlib.contextmanager
def in_this_process() -> Iterator[RunJobs]:
    """This process, one job after the other."""
    yield lambda jobs, inputs: (
        (job, read if isinstance(read, JobFailure) else run_job(job, read)) for job, read in with_inputs(jobs, inputs)
    )


@contextlib.contextmanager
def in_processes(workers: int) -> Iterator[RunJobs]:
    """Run jobs in worker processes of this machine. A worker that dies (out of memory, killed) takes its own job with
    it and no other; a new one takes its place."""
    context = multiprocessing.get_context("spawn")  # a fork would copy this process's threads' locks
    processes: dict[Connection, Any] = {}
    """{our end of its pipe: process}, idle and busy."""

    def start_worker() -> Connection:
        """Start a worker process for the comparison's jobs."""
        ours, theirs = context.Pipe()
        processes[ours] = context.Process(target=_worker_loop, args=(theirs,), daemon=True)
        processes[ours].start()
        theirs.close()  # so that the worker's end closes with the worker
        return ours

    def run_jobs(jobs: Iterable[Job], inputs: AdapterFiles) -> Iterator[tuple[Job, JobOutput | JobFailure]]:
        """Give jobs to the worker processes as they become free, and yield what they send."""
        waiting, busy = with_inputs(jobs, inputs), {}
        idle = list(processes)
        while True:
            while (idle or len(processes) < workers) and (following := next(waiting, None)) is not None:
                job, read = following
                if isinstance(read, JobFailure):
                    yield job, read
                    continue
                worker = idle.pop() if idle else start_worker()
                busy[worker] = job
                with contextlib.suppress(OSError):  # it died before it began, which recv below reports
                    worker.send((job, read))
            if not busy:
                return
            for worker in wait(list(busy)):
                assert isinstance(worker, Connection)
                try:
                    outcome = worker.recv()
                    idle.append(worker)
                except (EOFError, OSError):
                    process = processes.pop(worker)
                    process.join()
                    outcome = JobFailure(
                        f"its worker died (exit code {process.exitcode}); out of memory? Use fewer --workers"
                    )
                yield busy.pop(worker), outcome

    try:
        yield run_jobs
    finally:
        for process in processes.values():
            process.terminate()
            process.join()


def _worker_loop(connection: Connection) -> None:
    """A worker process: receives jobs and sends their outputs until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent process
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # an ordinary end, which gives back what libraries hold
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            job, inputs = connection.recv()
            connection.send(run_job(job, inputs))


@contextlib.contextmanager
def on_ray_cluster(address: str) -> Iterator[RunJobs]:
    """Run jobs on a Ray cluster: one CPU, and one GPU if the cluster has any, for each job; twice as many jobs are
    submitted as can run."""
    optional_dependencies.require("ray", reason="--ray")
    import ray
    from ray.exceptions import RayError

    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}  # a running one takes no settings
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"no Ray cluster at {address!r} ({reason}); --ray local starts one") from error

    def run_jobs(jobs: Iterable[Job], inputs: AdapterFiles) -> Iterator[tuple[Job, JobOutput | JobFailure]]:
        """Submit jobs to the Ray cluster, and yield their outputs."""
        has = ray.cluster_resources()
        gpus = 1 if has.get("GPU") else 0
        # a crash is a result, to be reported; a second try would hide it
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(run_job)
        slots = 2 * max(1, int(has["GPU"] if gpus else has.get("CPU", 1)))
        waiting, busy = with_inputs(jobs, inputs), {}
        while True:
            while len(busy) < slots and (following := next(waiting, None)) is not None:
                job, read = following
                if isinstance(read, JobFailure):
                    yield job, read
                else:
                    busy[remote.remote(job, dict(read))] = job
            if not busy:
                return
            (ready, *_), _ = ray.wait(list(busy), num_returns=1)
            job = busy.pop(ready)
            try:
                outcome = ray.get(ready)
            except RayError as error:
                outcome = JobFailure(f"its Ray worker died: {str(error).strip().splitlines()[0]}")
            yield job, outcome

    try:
        yield run_jobs
    finally:
        ray.shutdown()
