"""Where jobs are done: in this process, in processes of this machine, on a Ray cluster; with the same results. [ray]

Each yields (job, what came of it) as jobs end. Inputs are read when a job's turn comes, so that they need not all be
in memory; nothing but bytes travels, so that machines need not share a disk.
"""

import contextlib
import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any

from .jobs import Job
from .work import Failed, Parts, attempt

Inputs = Callable[[Job], Mapping[str, bytes]]
Done = Iterator[tuple[Job, Parts | Failed]]


def run(jobs: Iterable[Job], inputs: Inputs, workers: int = 1, ray: str = "") -> Done:
    """Do jobs: on the Ray cluster at an address ("local": one of this machine, started for it), else in `workers`
    processes, else here.

    Raises: ValueError: Ray is not installed or not there.
    """
    if ray:
        yield from on_ray(jobs, inputs, ray)
    elif workers > 1:
        yield from in_processes(jobs, inputs, workers)
    else:
        yield from ((job, attempt(job, inputs(job))) for job in jobs)


def in_processes(jobs: Iterable[Job], inputs: Inputs, workers: int) -> Done:
    """A worker that dies (out of memory, killed) takes its own job with it and no other; a new one takes its place."""
    context = multiprocessing.get_context("spawn")  # a fork would copy this process's threads' locks
    waiting, busy = iter(jobs), {}

    def start() -> tuple[Connection, Any]:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()  # so that the worker's end closes with the worker
        return ours, process

    def employ(worker: tuple[Connection, Any]) -> None:
        connection, process = worker
        job = next(waiting, None)
        if job is None:
            connection.close()
            process.join()
            return
        busy[connection] = (job, process)
        with contextlib.suppress(OSError):  # it died before it began: that shows when its answer is awaited
            connection.send((job, inputs(job)))

    try:
        for _ in range(workers):
            employ(start())
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                job, process = busy.pop(connection)
                try:
                    came = connection.recv()
                    worker = (connection, process)
                except (EOFError, OSError):
                    process.join()
                    came = Failed(f"its worker died (exit code {process.exitcode}); out of memory? Use fewer --workers")
                    worker = start()
                yield job, came
                employ(worker)
    finally:
        for _, process in busy.values():
            process.terminate()
            process.join()


def _serve(connection: Connection) -> None:
    """A worker: jobs come, results go, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who started it
    while True:
        try:
            job, inputs = connection.recv()
        except EOFError:
            return
        connection.send(attempt(job, inputs))


def on_ray(jobs: Iterable[Job], inputs: Inputs, address: str) -> Done:
    """One CPU, and one GPU where the cluster has any, for each job; twice as many are on their way as can run."""
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError as error:
        raise ValueError("Ray is not installed: pip install 'qrlora[ray]'") from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **_local(address))
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"no Ray cluster at {address!r} ({str(error).splitlines()[0]}); --ray local starts one"
        ) from error
    try:
        has = ray.cluster_resources()
        gpus = 1 if has.get("GPU") else 0
        # a crash is a result, to be reported; a second try would hide it
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(attempt)
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
                came = Failed(f"its Ray worker died: {str(error).strip().splitlines()[0]}")
            yield job, came
    finally:
        ray.shutdown()


def _local(address: str) -> dict[str, Any]:
    """Only a cluster that is started here takes settings."""
    return {"include_dashboard": False} if address == "local" else {}
