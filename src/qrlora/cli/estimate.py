"""`qrlora estimate`: what is trained, the files, memory by item, which card is enough, and what a real run took."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..layouts import VARIANTS
from . import console, options, tables
from .progress_bar import progress_bar

if TYPE_CHECKING:
    from ..estimate import Report

EXAMPLE = f"qrlora estimate {next(iter(VARIANTS))} --resolution 512"
CHECKPOINTING = {"kept": "no", "recomputed": "yes"}
"""What becomes of activations -> whether that is gradient_checkpointing."""


def estimate(
    base: Annotated[
        str,
        typer.Argument(help=f"{', '.join(VARIANTS)}, built-in, a folder."),
    ],
    run: Annotated[
        str, typer.Option(help="whole: the whole model; blocks: one of each kind; count: nothing; auto: what fits.")
    ] = "auto",
    steps: Annotated[int, typer.Option(help="Timed updates, after one that warms up.")] = 3,
    method: options.Method = "qr",
    against: Annotated[str, typer.Option(help="Another method to compare with; empty: none.")] = "lora",
    rank: options.Rank = None,
    targets: Annotated[
        str | None, typer.Option(help="{presets}, or name endings.", show_default="the base's own")
    ] = None,
    resolution: Annotated[str | None, typer.Option(help=options.SIZE, show_default="the base's own")] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option(help="Tokens of the training prompt, if not padded.", show_default="the longest")
    ] = None,
    dtype: Annotated[str, typer.Option(help="dtype of the base: float32, bfloat16 or float16.")] = "bfloat16",
    quantize: Annotated[str, typer.Option(help="Run it in fewer bits: nf4, int8 or float8.", show_default="no")] = "",
    gradient_checkpointing: Annotated[bool, typer.Option("--gradient-checkpointing", help="Run it so.")] = False,
    report: Annotated[Path | None, typer.Option("--json", help="Write the report to this file, too.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    overwrite: options.Overwrite = False,
) -> None:
    """Say what training on a base takes, and which card is enough, before downloading it.

    Memory is counted from shapes. If the whole model fits the device, it is built with random weights and run by the
    code that trains: basis, updates, merge, a denoising step. If not, seconds are extrapolated from one block of each
    kind.
    """
    from .. import optional_dependencies, output_files

    optional_dependencies.require("diffusers", reason="qrlora estimate")
    from .. import estimate as estimates

    if report is not None:
        output_files.check_writable(report, overwrite)
    with progress_bar("estimating") as bar:
        found = estimates.estimate(
            base,
            how=run,  # pyright: ignore[reportArgumentType] # checked there
            steps=steps,
            method=method,
            against=against,
            rank=rank,
            targets=targets,
            resolution=resolution,
            dtype=dtype,
            prompt_tokens=prompt_tokens,
            quantize=quantize,
            gradient_checkpointing=gradient_checkpointing,
            device=device,
            on_stage=bar.stage,
        )
    print_report(found)
    if report is not None:
        with output_files.atomic(report, overwrite) as file:
            file.write((json.dumps(dataclasses.asdict(found), indent=1) + "\n").encode())


def print_report(report: "Report") -> None:
    """Print an estimate: what is trained, what it needs, and what a run took."""
    from ..estimate import MARGIN, RESERVED

    about = [
        ("trainable component", tables.format_count(report.parameters)),
        ("layers with an adapter", str(report.layers)),
    ]
    about += [(f"trainable parameters, {method}", tables.format_count(n)) for method, n in report.trained.items()]
    about += [(f"file, {content}, bfloat16", _megabytes(size)) for content, size in report.files.items()]
    about += [(f"{part}, on the CPU while training", _megabytes(size)) for part, size in report.spare.items()]
    settings = f"rank {report.rank}, targets {report.targets}, {report.resolution} px, batch {report.batch_size}"
    settings += f", prompt of {report.prompt_tokens} tokens" if report.prompt_tokens else ""
    tables.print_table(("", "counted"), about, f"{report.base}: {settings}, {report.dtype}")
    rows = []
    for method, steps in report.step.items():
        for weights in report.weights:
            for activations in steps:
                items = (report.weights[weights], report.adapter[method], steps[activations])
                card = report.fits(weights, activations, method)
                need = _gigabytes(report.need(weights, activations, method))
                verdict = f"{card} GB" if card else "none"
                rows.append((method, weights, CHECKPOINTING[activations], *map(_gigabytes, items), need, verdict))
    columns = ("method", "weights", "gradient_checkpointing", "model", "adapter", "update", "need", "smallest card")
    assumed = f"need: update times {MARGIN:g}, and {RESERVED / 1e9:g} GB for the driver, assumed"
    tables.print_table(columns, rows, f"Memory in GB, counted without running the model; {assumed}")
    turns = [(f"{part}, before the model is there", _gigabytes(size)) for part, size in report.opening.items()]
    turns += [(f"{what}, beside model and adapter", _gigabytes(size)) for what, size in report.drawing.items()]
    tables.print_table(("turn", "GB"), turns, "Beside updates; need is the most at any time")
    if report.short:
        console.say(f"Too little memory here: {report.short}.")
    _print_run(report)


def _print_run(report: "Report") -> None:
    """Print an estimate's table of what was run, measured beside counted; nothing if nothing was."""
    weights, activations = report.chosen
    rows = []
    for method, stages in report.stages.items():
        for what, stage in stages.items():
            seen = _gigabytes(stage.peak) if stage.peak is not None else ""
            counted = _gigabytes(report.counted(weights, activations, method)) if what == "update" and seen else ""
            rows.append((method, what, f"{stage.seconds:.3g}", seen, counted))
    settings = f"activations {activations}; text encoders and VAE absent"
    if report.how == "whole":
        title = f"Measured: the whole model with random weights on {report.device}, {weights}, {settings}"
        tables.print_table(("method", "stage", "seconds", "most GB in use", "GB counted"), rows, title)
    elif report.how == "blocks":
        title = f"Extrapolated from a block of each kind on {report.device}, {report.dtype}, {settings}"
        tables.print_table(("method", "stage", "seconds"), [row[:3] for row in rows], title)
    if report.why:
        console.say(f"The whole model was not run: {report.why}.")


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.{1 if size >= 1e9 else 3}f}"
