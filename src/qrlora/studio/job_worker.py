"""The process of one job: calls the public function, and appends what it reports to the job's events.

`python -m qrlora.studio.job_worker FOLDER DEVICE`
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .. import output_files
from ..error_messages import error_message
from .jobs import ADAPTER, Job
from .uploaded_images import picture_name

GIGABYTE = 1e9


def train_adapter(job: Job, device: str) -> dict[str, Any]:
    """Do a training job: train, report each update as an event, keep previews."""
    import qrlora

    from ..training import Progress

    def on_step(progress: Progress) -> None:
        fields = {"step": progress.step, "steps": progress.steps, "left": progress.seconds_left}
        job.add_event("step", loss=progress.loss, **fields)

    def on_preview(step: int, image: Any) -> None:
        with output_files.warn_if_unwritable("the training goes on without this preview"):
            save_image(image, job.folder / preview_name(step))
            job.add_event("preview", step=step)

    def on_stage(what: str, share: float) -> None:
        job.add_event("stage", what=what, share=round(share, 3))

    config = qrlora.TrainConfig(**training_settings(job), device=device)
    qrlora.train(config, on_step=on_step, on_preview=on_preview, on_stage=on_stage)
    return adapter_facts(job.adapter)


def training_settings(job: Job) -> dict[str, Any]:
    """The settings of a training job, with whole names of files."""
    images = [str(job.folder / picture_name(k)) for k in range(len(job.settings["pictures"]))]
    crops = tuple(tuple(crop) for crop in job.settings["crop"])
    image = tuple(images) if len(images) > 1 else images[0]
    found = {**job.settings["train"], "image": image, "output": str(job.adapter)}
    return {**found, "crop": crops} if crops else found


def preview_name(step: int) -> str:
    return f"preview-{step:05}.png"


def merge_adapters(job: Job, device: str) -> dict[str, Any]:
    """Do a merge job: merge adapters, write the file, and check it for every tool."""
    import qrlora

    opened = [qrlora.load(path) for path in adapters(job)]
    merged = qrlora.merge(opened, job.settings["strengths"], job.settings["rule"])
    qrlora.save(merged, job.adapter, overwrite=True)
    return {**adapter_facts(job.adapter), "tools": tools_that_load(job.adapter)}


def read_adapter(job: Job, device: str) -> dict[str, Any]:
    """Do an import job: read an uploaded adapter, whatever tool wrote it."""
    import qrlora

    try:
        qrlora.load(job.adapter)
    except ValueError as error:
        raise ValueError(str(error).replace(str(job.adapter), job.title)) from error
    return {**adapter_facts(job.adapter), "tools": tools_that_load(job.adapter)}


def adapter_facts(path: Path) -> dict[str, Any]:
    """A job's result for its page: what an adapter's file says of itself."""
    import qrlora

    adapter = qrlora.load(path)
    header = adapter.header
    names = ("base", "family", "role", "trigger", "prompt", "method")
    found = {name: getattr(header, name) for name in names}
    return {**found, "rank": adapter.rank, "layers": len(adapter.layers), "bytes": path.stat().st_size}


def tools_that_load(path: Path) -> list[dict[str, Any]]:
    """A job's result for its page: for every tool, how many of a file's keys it loads, and why not the others."""
    from .. import compat

    rows = []
    for tool in compat.TOOLS:
        verdicts = compat.check(path, tool)
        states = Counter(verdict.state for verdict in verdicts)
        reasons = list(dict.fromkeys(x.reason for x in verdicts if x.state != "loaded"))
        rows.append({"tool": tool, "loaded": states["loaded"], "keys": len(verdicts), "why": "; ".join(reasons)})
    return rows


def adapters(job: Job) -> list[Path]:
    """The files of the adapters that a job works on, which are other jobs'."""
    return [job.folder.parent / name / ADAPTER for name in job.settings["adapters"]]


def check_tools(job: Job, device: str) -> dict[str, Any]:
    """Which tools load an adapter."""
    return {"tools": tools_that_load(adapters(job)[0])}


def compare_adapters(job: Job, device: str) -> dict[str, Any]:
    """Do a comparison job: how alike two adapters are, layer by layer, and a plot."""
    import qrlora

    from .. import plots

    first, second = (qrlora.load(path) for path in adapters(job))
    names = job.settings["names"]
    if not first.layers.keys() & second.layers.keys():
        return {"rows": [], "note": "They share no layer: neither can disturb the other."}
    rows = qrlora.similarity(first, second)
    figure = plots.similarity_plot(names, rows)
    plots.save(figure, job.folder / "plot.png", overwrite=True)
    columns = ("update", "input_overlap", "output_overlap")
    means = {name: sum(getattr(r, name) for r in rows) / len(rows) for name in columns}
    return {"rows": [[name, value] for name, value in means.items() if value == value], "note": "", "plot": "plot.png"}


def estimate_memory(job: Job, device: str) -> dict[str, Any]:
    """Do an estimate job: the memory that a training takes, counted without running the model."""
    from .. import estimate as estimates
    from ..devices import choose_device, choose_dtype

    wanted: Mapping[str, Any] = job.settings["settings"]
    dtype = choose_dtype(wanted.get("dtype", "auto"), choose_device(job.settings["device"]))
    settings = {**wanted, "dtype": str(dtype).removeprefix("torch."), "device": job.settings["device"]}
    report = estimates.estimate(job.settings["base"], how="count", against="", **settings)
    method, chosen = report.method, report.chosen
    rows = []
    for weights in report.weights:
        for activations in report.step[method]:
            need = report.need(weights, activations, method)
            row = {"weights": weights, "recomputed": activations == "recomputed", "need": need / GIGABYTE}
            fits = {"card": report.fits(weights, activations, method), "here": need <= report.free}
            rows.append({**row, **fits, "chosen": (weights, activations) == chosen})
    found = {"device": report.device, "free": report.free / GIGABYTE, "resolution": report.resolution}
    return {**found, "rank": report.rank, "file": report.files["full"] / 1e6, "rows": rows}


KINDS: dict[str, Callable[[Job, str], dict[str, Any]]] = {
    "train": train_adapter,
    "merge": merge_adapters,
    "import": read_adapter,
    "check": check_tools,
    "compare": compare_adapters,
    "estimate": estimate_memory,
}
"""Kind of a job -> (job, device) -> what pages tell of its result."""


def save_image(image: Any, path: Path) -> None:
    """Write a PIL image as PNG, whole or not at all."""
    with output_files.atomic(path) as file:
        image.save(file, "PNG")


def user_message(error: Exception) -> str:
    """A job's error as one line for its page."""
    known = error_message(error, "take a smaller resolution, offload, or quantize=int8")
    return " ".join((known or f"{type(error).__name__}: {error}").split())


def run_job(job: Job, device: str) -> None:
    """Do a job of any kind and note in its events how it ended."""
    warnings.showwarning = lambda message, *_about: job.add_event("warning", text=" ".join(str(message).split()))
    try:
        if job.stopping:  # asked to, before there was a process to ask
            raise KeyboardInterrupt("stopped before the first update")
        job.add_event("end", result=KINDS[job.kind](job, device))
    except KeyboardInterrupt as stop:
        job.add_event("stopped", text=str(stop) or "stopped")
    except Exception as error:
        job.add_event("failed", text=user_message(error))
        raise


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt("stopped before the first update")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)  # a training has its own way, in which it writes a checkpoint
    folder = Path(sys.argv[1])
    os.environ["MPLBACKEND"] = "agg"
    run_job(Job.read(folder), sys.argv[2])
