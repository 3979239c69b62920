"""What `qrlora inspect` shows of one adapter file, and of two."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import analysis, extras, output_files
from ..adapter import Adapter, Header
from ..layouts.blocks import block_of
from ..methods import METHODS
from . import console, filing

SHOWN = ("steps", "learning_rate", "batch_size", "resolution", "optimizer", "seed", "dtype", "image")
"""Settings of a run that say how an adapter was made; the header holds all."""


def inspect(
    paths: Sequence[str],
    plot: Path | None,
    every_layer: bool,
    overwrite: bool = False,
    skip_text_encoders: bool = False,
) -> Path | None:
    """Print what is in one or two files; with two, or if asked, draw energy and similarity.

    Args:    overwrite: whether another plot at that place may be replaced; where no place is given it is numbered.
    Returns: where the plot is, None without one.
    Raises:  ValueError: another number of files, or what files.load and analysis.similarity refuse.
    """
    if not 1 <= len(paths) <= 2:
        raise ValueError(f"inspect shows one file or compares two, got {len(paths)}")
    place = _place(paths, plot)
    adapters = [filing.read(path, skip_text_encoders) for path in paths]
    for path, adapter in zip(paths, adapters, strict=True):
        console.table(("", ""), facts(Path(path), adapter), title=str(path), numbers=False)
        if adapter.header.parents:
            console.table(("merged from", "strength", "energy kept"), parents(adapter.header.parents))
    names = [Path(path).stem for path in paths]
    if len(adapters) == 2:
        names = names if names[0] != names[1] else [f"{name} {k}" for k, name in enumerate(names, 1)]
        if not adapters[0].layers.keys() & adapters[1].layers.keys():
            counts = " and ".join(str(len(adapter.layers)) for adapter in adapters)
            plotless = "" if plot is None else ", and there is nothing to draw"
            console.say(f"no shared layer, nothing interferes ({counts} layers){plotless}")
            return None
        rows = analysis.similarity(*adapters)
        _compare(names, rows, every_layer)
        return _saved(_drawn(names, rows), place, overwrite, number=plot is None) if place else None
    energies = analysis.energy(adapters[0])
    columns: dict[str, Callable[[Any], float]] = {"norm of the update": lambda row: row.norm}
    _grouped(columns, energies, every_layer, shares={"share of energy": lambda row: row.share})
    if place is None:
        return None
    curves = {"norm of update": {names[0]: [row.norm for row in energies]}}
    return _saved(_lines([row.layer for row in energies], curves, names[0]), place, overwrite)


def _place(paths: Sequence[str], plot: Path | None) -> Path | None:
    """Where to draw; of two files also if nobody says so, provided that there is something to draw with.

    Raises: ValueError, OSError: no kind of figure, or nothing can be written there; MissingExtra.
    """
    if plot is None and len(paths) == 2:
        if hint := extras.missing("plots", reason="a plot of the two"):
            console.warn(hint)
            return None
        plot = Path(f"{Path(paths[0]).stem}-{Path(paths[1]).stem}-similarity.png")
    if plot is not None:
        from .. import plots

        plots.figure_format(plot)
        output_files.check(plot, overwrite=True)
    return plot


def _saved(figure: Any, place: Path, overwrite: bool, number: bool = False) -> Path:
    """Where a plot is; one that is there with these very lines is left alone. Raises as `outputs.atomic`."""
    from .. import plots

    try:
        return plots.save(figure, place, overwrite)
    except FileExistsError:
        if not number:
            raise
    return plots.save(figure, output_files.numbered(place, os.path.lexists))


def facts(path: Path, adapter: Adapter) -> list[tuple[str, str]]:
    """(name, value) lines about one file, those that are known."""
    header = adapter.header
    run = [f"{name} {header.config[name]}" for name in SHOWN if header.config.get(name) not in (None, "")]
    paper = f" ({METHODS[header.method].paper})" if header.method in METHODS else ""
    held = sum(pair.A.numel() + pair.B.numel() for pair in adapter.layers.values())
    lines = [
        ("role", header.role or "unknown: not written by qrlora"),
        ("trigger", header.trigger),
        ("prompt", header.prompt),
        ("base", f"{header.base} ({header.family}, {header.part})" if header.base else header.family),
        ("method", header.method + paper),
        ("rank", str(adapter.rank)),
        ("layers", f"{len(adapter.layers)}{f', targets {header.targets}' if header.targets else ''}"),
        ("trainable", _trainable(adapter)),
        ("in the file", f"{console.size(path)}, {console.count(held)} numbers as A and B"),
        ("basis", header.basis[:16] + _lacking(header)),
        ("run", ", ".join(run)),
    ]
    return [(name, value) for name, value in lines if value]


def _lacking(header: Header) -> str:
    """What the basis lacks, in the layer where it is most."""
    lost = header.config.get("basis_energy_lost")
    return "" if lost is None else ", all eigenvectors" if lost == 0 else f", lacks {lost:.1g} of its energy at most"


def _trainable(adapter: Adapter) -> str:
    """How many numbers learnt, and LoRA's at the same rank beside it; nothing for a merge, which learnt nothing."""
    header = adapter.header
    if header.parents or header.method not in METHODS or not header.rank:
        return ""
    learnt = analysis.trainable_parameters(adapter)
    of_lora = sum(METHODS["lora"].trainable_parameters(o, i, header.rank) for o, i in adapter.shapes.values())
    return f"{console.count(learnt)}, {learnt / of_lora:.1%} of LoRA's {console.count(of_lora)}"


def parents(headers: Sequence[Mapping[str, Any]], depth: int = 0) -> list[tuple[str, str, str]]:
    """One line for each adapter that went into a merge, and for those that went into it, indented."""
    lines = []
    for header in headers:
        made = " ".join(str(header[name]) for name in ("role", "trigger", "method") if header.get(name))
        image = header.get("config", {}).get("image", "")
        what = "  " * depth + made + (f" from {image}" if image else "")
        kept = "" if header["kept_energy"] is None else f"{header['kept_energy']:.2%}"
        lines.append((what, f"{header['weight']:g}", kept))
        lines += parents(header.get("parents", ()), depth + 1)
    return lines


def _compare(names: Sequence[str], rows: Sequence[analysis.Similarity], every_layer: bool) -> None:
    """The table of two adapters: norms, cosines, overlaps."""
    columns: dict[str, Callable[[Any], float]] = {
        f"|{names[0]}|": lambda row: row.first_norm,
        f"|{names[1]}|": lambda row: row.second_norm,
        "cos updates": lambda row: row.update,
        "cos learnt": lambda row: row.learned,
        "in overlap": lambda row: row.input_overlap,
        "out overlap": lambda row: row.output_overlap,
    }
    _grouped(columns, rows, every_layer)


def _grouped(
    columns: Mapping[str, Callable[[Any], float]],
    rows: Sequence[Any],
    every_layer: bool,
    shares: Mapping[str, Callable[[Any], float]] | None = None,
) -> None:
    """Rows as they are, or means (of `shares`: sums) over the layers of each block, and over all."""
    shares = shares or {}
    groups: dict[str, list[Any]] = {}
    for row in rows:
        groups.setdefault(row.layer if every_layer else block_of(row.layer), []).append(row)
    lines = []
    for name, members in [*groups.items(), ("all", list(rows))]:
        cells = [console.number(_mean([value(row) for row in members])) for value in columns.values()]
        cells += [f"{sum(value(row) for row in members):.1%}" for value in shares.values()]
        lines.append((name, *cells) if every_layer else (name, str(len(members)), *cells))
    console.table((*(["layer"] if every_layer else ["block", "layers"]), *columns, *shares), lines)


def _mean(values: Sequence[float]) -> float:
    """The mean of the numbers that have a meaning, NaN if none has."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _drawn(names: Sequence[str], rows: Sequence[analysis.Similarity]) -> Any:
    """The plot of two adapters, layer by layer."""
    curves = {
        "norm of update": {names[0]: [r.first_norm for r in rows], names[1]: [r.second_norm for r in rows]},
        "cosine": {"updates": [r.update for r in rows], "learnt factors": [r.learned for r in rows]},
        "overlap of spans": {"inputs": [r.input_overlap for r in rows], "outputs": [r.output_overlap for r in rows]},
    }
    return _lines([row.layer for row in rows], curves, f"{names[0]} and {names[1]}")


def _lines(layers: Sequence[str], curves: Mapping[str, Mapping[str, Sequence[float]]], title: str) -> Any:
    """The figure of `plots.layer_lines`."""
    from .. import plots

    return plots.layer_lines(layers, curves, title=title)
