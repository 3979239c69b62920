"""`qrlora merge`: several adapter files into one."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import adapter_files, console, options, process_settings
from .arguments import files_with_strengths
from .progress_bar import progress_bar

if TYPE_CHECKING:
    from ..adapter import Header

EXAMPLE = "qrlora merge dog.safetensors ink.safetensors=0.8 -o dog-ink.safetensors"


def merge(
    adapters: Annotated[
        list[str], typer.Argument(metavar="FILE[=STRENGTH]", help="Adapter files; strength 1 if none is given.")
    ],
    output: Annotated[Path, options.File] = Path("merged.safetensors"),
    rule: Annotated[str, typer.Option(help="{rules}.")] = "sum",
    parameters: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A parameter of the rule.", show_default="the rule's own"),
    ] = None,
    content: options.Content = "full",
    keys: options.Keys = None,
    skip_text_encoders: options.SkipTextEncoders = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Add adapters into one file, for diffusers, ComfyUI, A1111 and others."""
    paths, strengths = files_with_strengths(adapters, merge, output)
    with process_settings.no_garbage_collection():
        from .. import files, merging
        from ..merging.rule_parameters import parse_parameters

        name, function = merging.find_rule(rule)
        if name != rule:
            console.warn(f"--rule {rule} is now --rule {name}; the old name goes with 0.3")
        chosen = parse_parameters(name, function, parameters or ())
        process_settings.use_one_thread()
        existed = adapter_files.check_output(output)
        opened = [adapter_files.read_adapter(path, skip_text_encoders) for path in paths]
        with progress_bar(f"merging by {name}", transient=True):
            merged = merging.merge(opened, strengths, name, **chosen)
        files.save(merged, output, content=content, keys=keys, overwrite=overwrite)
    report_merge(paths, merged.header)
    adapter_files.report_written(output, merged, "", existed and not overwrite)


def report_merge(paths: Sequence[str], header: "Header") -> None:
    """Print a line for each adapter of a merge, what its rule lost, and whether they go together."""
    from ..merging.roles import doubts

    weights, shares = header.config["weights"], header.config["kept_energy"]
    for path, weight, share in zip(paths, weights, shares or [None] * len(paths), strict=True):
        kept = "" if share is None else f", {share:.2%} of its squared norm kept"
        console.say(f"{path}: strength {weight:g}{kept}")
    for doubt in doubts([header]):
        console.warn(doubt)
    if error := header.config.get("truncation_error"):
        console.warn(f"the merged update was cut to rank {header.rank}: relative error {error:.1%}")
