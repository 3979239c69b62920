"""`qrlora inspect`: what is in an adapter file; with two files, how alike they are, as a table and a plot."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import adapter_files, console, options, process_settings, tables

if TYPE_CHECKING:
    from ..adapter import Adapter

EXAMPLE = "qrlora inspect dog.safetensors ink.safetensors"


def inspect(
    adapters: Annotated[list[str], typer.Argument(metavar="FILE", help="One file, or two to compare.")],
    plot: Annotated[
        Path | None, typer.Option(help="Where to draw.", show_default="two files: A-B-similarity.png")
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="A line for each layer instead of each block.")] = False,
    skip_text_encoders: options.SkipTextEncoders = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Show what is in an adapter file; with two files, also how alike they are."""
    with process_settings.no_garbage_collection():
        process_settings.use_one_thread()
        drawn = inspect_files(adapters, plot, layers, overwrite, skip_text_encoders)
    if drawn:
        console.say(f"plot: {drawn}")


def inspect_files(
    paths: Sequence[str],
    plot: Path | None,
    every_layer: bool,
    overwrite: bool = False,
    skip_text_encoders: bool = False,
) -> Path | None:
    """What `qrlora inspect` prints of one or two files; with two, or if asked, norms and similarity are plotted.

    Args:    overwrite: whether another plot at that place may be replaced; where no place is given it is numbered.
    Returns: where the plot is, None without one.
    Raises:  ValueError: another number of files, or what files.load and analysis.similarity refuse.
    """
    from . import adapter_tables

    if not 1 <= len(paths) <= 2:
        raise ValueError(f"inspect shows one file or compares two, got {len(paths)}")
    place = plot_path(paths, plot)
    adapters = [adapter_files.read_adapter(path, skip_text_encoders) for path in paths]
    for path, adapter in zip(paths, adapters, strict=True):
        facts = adapter_tables.file_facts(Path(path), adapter)
        tables.print_table(("", ""), facts, title=str(path), numbers=False)
        if adapter.header.parents:
            parents = adapter_tables.parent_rows(adapter.header.parents)
            tables.print_table(("merged from", "strength", "squared norm kept"), parents)
    names = [adapter_files.with_own_name(path).stem for path in paths]
    if len(adapters) == 2:
        return inspect_two_files(names, adapters, place, every_layer, overwrite, given=plot is not None)
    return inspect_one_file(names[0], adapters[0], place, every_layer, overwrite)


def inspect_two_files(
    names: list[str], adapters: "list[Adapter]", place: Path | None, every_layer: bool, overwrite: bool, given: bool
) -> Path | None:
    """Inspect two files: the table and the plot of their similarity; no plot where they share no layer."""
    from .. import analysis
    from . import adapter_tables

    names = names if names[0] != names[1] else [f"{name} {k}" for k, name in enumerate(names, 1)]
    if not adapters[0].layers.keys() & adapters[1].layers.keys():
        counts = " and ".join(str(len(adapter.layers)) for adapter in adapters)
        plotless = ", and there is nothing to draw" if given else ""
        console.say(f"no shared layer, nothing interferes ({counts} layers){plotless}")
        return None
    rows = analysis.similarity(*adapters)
    adapter_tables.print_similarity(names, rows, every_layer)
    if place is None:
        return None
    from .. import plots

    return save_plot(plots.similarity_plot(names, rows), place, overwrite, number=not given)


def inspect_one_file(
    name: str, adapter: "Adapter", place: Path | None, every_layer: bool, overwrite: bool
) -> Path | None:
    """Inspect one file: the table of its norms by block or layer, and its plot where one is asked for."""
    from .. import analysis
    from . import adapter_tables

    norms = analysis.update_norms(adapter)
    shares = {"fraction of squared norm": lambda row: row.share}
    adapter_tables.print_by_block({"norm of the update": lambda row: row.norm}, norms, every_layer, shares)
    if place is None:
        return None
    from .. import plots

    curves = {"norm of update": {name: [row.norm for row in norms]}}
    return save_plot(plots.layer_lines([row.layer for row in norms], curves, title=name), place, overwrite)


def plot_path(paths: Sequence[str], plot: Path | None) -> Path | None:
    """Where `qrlora inspect` plots; of two files also if nobody says so, provided that matplotlib is installed.

    Raises: ValueError, OSError: no kind of figure, or nothing can be written there; MissingExtra.
    """
    from .. import optional_dependencies, output_files

    if plot is None and len(paths) == 2:
        if hint := optional_dependencies.missing_extra_hint("plots", reason="a plot of the two"):
            console.warn(hint)
            return None
        first, second = (adapter_files.with_own_name(path).stem for path in paths)
        plot = Path(f"{first}-{second}-similarity.png")
    if plot is not None:
        from .. import plots

        plots.figure_format(plot)
        output_files.check_writable(plot, overwrite=True)
    return plot


def save_plot(figure: Any, place: Path, overwrite: bool, number: bool = False) -> Path:
    """Save the plot of `qrlora inspect`; one that is there with these very lines is left alone. Raises as
    `output_files.atomic`."""
    from .. import output_files, plots

    try:
        return plots.save(figure, place, overwrite)
    except FileExistsError:
        if not number:
            raise
    return plots.save(figure, output_files.first_free_name(place, os.path.lexists))
