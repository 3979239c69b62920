"""What `qrlora rehearse` shows: what is trained, the files, memory by item, seconds, and which card is enough."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from .. import rehearsal
from . import console

WORDS = {"kept": "no", "recomputed": "yes"}


def rehearse(name: str, output: Path | None, **settings: Any) -> None:
    """Rehearse, print, and write the report as JSON if asked to. Raises: as `rehearsal.rehearse`."""
    with console.progress("rehearsing") as bar:
        report = rehearsal.rehearse(name, on_stage=bar.stage, **settings)
    print_report(report)
    if output is not None:
        output.write_text(json.dumps(dataclasses.asdict(report), indent=1) + "\n", encoding="utf-8")


def print_report(report: rehearsal.Report) -> None:
    """The report as three tables."""
    about = [("trainable part", console.count(report.parameters)), ("layers with an adapter", str(report.layers))]
    about += [(f"numbers that learn, {method}", console.count(n)) for method, n in report.trained.items()]
    about += [(f"file, {content}, bfloat16", _megabytes(size)) for content, size in report.files.items()]
    about += [(f"{part}, on the CPU while learning", _megabytes(size)) for part, size in report.spare.items()]
    settings = f"rank {report.rank}, targets {report.targets}, {report.resolution} px, {report.dtype}"
    console.table(("", "counted"), about, f"{report.base}: {settings}")
    rows = []
    for method, steps in report.step.items():
        for weights in report.weights:
            for activations in steps:
                items = (report.weights[weights], report.adapter[method], steps[activations])
                card = report.fits(weights, activations, method)
                need = _gigabytes(report.need(weights, activations, method))
                verdict = f"{card} GB" if card else "none"
                rows.append((method, weights, WORDS[activations], *map(_gigabytes, items), need, verdict))
    columns = ("method", "weights", "gradient_checkpointing", "model", "adapter", "update", "need", "smallest card")
    assumed = f"need: update times {rehearsal.MARGIN:g}, and {rehearsal.RESERVED / 1e9:g} GB for the driver, assumed"
    console.table(columns, rows, f"Memory in GB, counted without running the model; {assumed}")
    if report.seconds:
        times = [(what, f"{value:.3g}") for what, value in report.seconds.items()]
        console.table(("", "seconds"), times, f"Extrapolated from a block of each kind on {report.device}")


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f}"
