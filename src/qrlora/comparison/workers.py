"""Where jobs are done: in this process, in processes of this machine, on a Ray cluster; with the same results. [ray]

Each way is a `with` that yields a function (jobs, inputs) -> (job, what came of it) as jobs end; workers live as long
as the `with`. Inputs are read when a job's turn comes, so that they need not all be in memory; nothing but bytes
travels, so that machines need not share a disk.
"""

import contextlib
import logging
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any

from .. import extras
from .jobs import Job
from .run_job import JobFailure, JobOutput, run_job

Inputs = Callable[[Job], Mapping[str, bytes]]
Do = Callable[[Iterable[Job], Inputs], Iterator[tuple[Job, JobOutput | JobFailure]]]


def worker_pool(workers: int = 1, ray: str = "") -> contextlib.AbstractContextManager[Do]:
    """The Ray cluster at an address ("local": one of this machine, started for it), else so many processes, else this.

    Raises: ValueError: Ray is not installed or not there.
    """
    return on_ray(ray) if ray else in_processes(workers) if workers > 1 else here()


@contextlib.contextmanager
def here() -> Iterator[Do]:
    """This process, one job after the other."""
    yield lambda jobs, inputs: ((job, run_job(job, inputs(job))) for job in jobs)


@contextlib.contextmanager
def in_processes(workers: int) -> Iterator[Do]:
    """A worker that dies (out of memory, killed) takes its own job with it and no other; a new one takes its place."""
    context = multiprocessing.get_context("spawn")  # a fork would copy this process's threads' locks
    staff: dict[Connection, Any] = {}
    """{our end: process}, idle and busy."""

    def hire() -> Connection:
        ours, theirs = context.Pipe()
        staff[ours] = context.Process(target=_serve, args=(theirs,), daemon=True)
        staff[ours].start()
        theirs.close()  # so that the worker's end closes with the worker
        return ours

    def do(jobs: Iterable[Job], inputs: Inputs) -> Iterator[tuple[Job, JobOutput | JobFailure]]:
        waiting, busy = iter(jobs), {}
        idle = list(staff)
        while True:
            while (idle or len(staff) < workers) and (job := next(waiting, None)) is not None:
                worker = idle.pop() if idle else hire()
                busy[worker] = job
                with contextlib.suppress(OSError):  # it died before it began: that shows when its answer is awaited
                    worker.send((job, inputs(job)))
            if not busy:
                return
            for worker in wait(list(busy)):
                assert isinstance(worker, Connection)
                try:
                    came = worker.recv()
                    idle.append(worker)
                except (EOFError, OSError):
                    process = staff.pop(worker)
                    process.join()
                    came = JobFailure(
                        f"its worker died (exit code {process.exitcode}); out of memory? Use fewer --workers"
                    )
                yield busy.pop(worker), came

    try:
        yield do
    finally:
        for process in staff.values():
            process.terminate()
            process.join()


def _serve(connection: Connection) -> None:
    """A worker: jobs come, results go, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who started it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # an ordinary end, which gives back what libraries hold
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            job, inputs = connection.recv()
            connection.send(run_job(job, inputs))


@contextlib.contextmanager
def on_ray(address: str) -> Iterator[Do]:
    """One CPU, and one GPU where the cluster has any, for each job; twice as many are on their way as can run."""
    extras.require("ray", reason="--ray")
    import ray
    from ray.exceptions import RayError

    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}  # a running one takes no settings
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"no Ray cluster at {address!r} ({reason}); --ray local starts one") from error

    def do(jobs: Iterable[Job], inputs: Inputs) -> Iterator[tuple[Job, JobOutput | JobFailure]]:
        has = ray.cluster_resources()
        gpus = 1 if has.get("GPU") else 0
        # a crash is a result, to be reported; a second try would hide it
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(run_job)
        slots = 2 * max(1, int(has["GPU"] if gpus else has.get("CPU", 1)))
        waiting, busy = iter(jobs), {}
        while True:
            while len(busy) < slots and (job := next(waiting, None)) is not None:
                busy[remote.remote(job, dict(inputs(job)))] = job
            if not busy:
                return
            (ready, *_), _ = ray.wait(list(busy), num_returns=1)
            job = busy.pop(ready)
            try:
                came = ray.get(ready)
            except RayError as error:
                came = JobFailure(f"its Ray worker died: {str(error).strip().splitlines()[0]}")
            yield job, came

    try:
        yield do
    finally:
        ray.shutdown()
