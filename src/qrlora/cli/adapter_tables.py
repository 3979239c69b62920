"""Tables of one adapter file and of two: what the header says, norms by layer, similarity by layer."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import analysis
from ..adapter import Adapter, Header
from ..initialisation_methods import METHODS
from ..layouts.blocks import block_of
from .tables import file_size, format_count, format_number, print_table

RUN_SETTINGS = ("steps", "learning_rate", "batch_size", "resolution", "optimizer", "seed", "dtype", "image")
"""Settings of a run that say how an adapter was made; the header holds all."""


def file_facts(path: Path, adapter: Adapter) -> list[tuple[str, str]]:
    """(name, value) lines of an adapter file's table, those that are known."""
    header = adapter.header
    run = [f"{name} {header.config[name]}" for name in RUN_SETTINGS if header.config.get(name) not in (None, "")]
    paper = f" ({METHODS[header.method].paper})" if header.method in METHODS else ""
    kind = ", ".join(filter(None, (header.family, header.component)))
    held = sum(pair.A.numel() + pair.B.numel() for pair in adapter.layers.values())
    lines = [
        ("role", header.role or "unknown: not written by qrlora"),
        ("trigger", header.trigger),
        ("prompt", header.prompt),
        ("base", f"{header.base} ({kind})" if header.base and kind else header.base or header.family),
        ("method", header.method + paper),
        ("rank", str(adapter.rank)),
        ("layers", f"{len(adapter.layers)}{f', targets {header.targets}' if header.targets else ''}"),
        ("trainable", trained_parameters_text(adapter)),
        ("in the file", f"{file_size(path)}, {format_count(held)} numbers as A and B"),
        ("basis", header.basis[:16] + lost_fraction_text(header)),
        ("run", ", ".join(run)),
    ]
    return [(name, value) for name, value in lines if value]


def lost_fraction_text(header: Header) -> str:
    """A line of an adapter's table: what its basis lacks, in the layer where it is most."""
    lost = header.config.get("basis_energy_lost")
    return (
        "" if lost is None else ", all eigenvectors" if lost == 0 else f", lacks {lost:.1g} of the squared norm at most"
    )


def trained_parameters_text(adapter: Adapter) -> str:
    """A line of an adapter's table: how many parameters were trained, and LoRA's at the same rank beside it; "" for a
    merge, which trained none."""
    header = adapter.header
    if header.parents or header.method not in METHODS or not header.rank:
        return ""
    trained = analysis.trainable_parameters(adapter)
    of_lora = sum(METHODS["lora"].trainable_parameters(o, i, header.rank) for o, i in adapter.shapes.values())
    return f"{format_count(trained)}, {trained / of_lora:.1%} of LoRA's {format_count(of_lora)}"


def parent_rows(headers: Sequence[Mapping[str, Any]], depth: int = 0) -> list[tuple[str, str, str]]:
    """Lines of a merge's table: one for each adapter that went into it, and for those that went into it, indented."""
    lines = []
    for header in headers:
        made = " ".join(str(header[name]) for name in ("role", "trigger", "method") if header.get(name))
        image = header.get("config", {}).get("image", "")
        what = "  " * depth + made + (f" from {image}" if image else "")
        kept = "" if header["kept_energy"] is None else f"{header['kept_energy']:.2%}"
        lines.append((what, f"{header['weight']:g}", kept))
        lines += parent_rows(header.get("parents", ()), depth + 1)
    return lines


def print_similarity(names: Sequence[str], rows: Sequence[analysis.Similarity], every_layer: bool) -> None:
    """Print the table of two adapters: norms, cosines, overlaps."""
    columns: dict[str, Callable[[Any], float]] = {
        f"|{names[0]}|": lambda row: row.first_norm,
        f"|{names[1]}|": lambda row: row.second_norm,
        "cos updates": lambda row: row.update,
        "cos trained": lambda row: row.trained,
        "in overlap": lambda row: row.input_overlap,
        "out overlap": lambda row: row.output_overlap,
    }
    print_by_block(columns, rows, every_layer)


def print_by_block(
    columns: Mapping[str, Callable[[Any], float]],
    rows: Sequence[Any],
    every_layer: bool,
    shares: Mapping[str, Callable[[Any], float]] | None = None,
) -> None:
    """Print an adapter's table of rows as they are, or of means (of `shares`: sums) over the layers of each block and
    all."""
    shares = shares or {}
    groups: dict[str, list[Any]] = {}
    for row in rows:
        groups.setdefault(row.layer if every_layer else block_of(row.layer), []).append(row)
    lines = []
    for name, members in [*groups.items(), ("all", list(rows))]:
        cells = [format_number(mean_of_known([value(row) for row in members])) for value in columns.values()]
        cells += [f"{sum(value(row) for row in members):.1%}" for value in shares.values()]
        lines.append((name, *cells) if every_layer else (name, str(len(members)), *cells))
    print_table((*(["layer"] if every_layer else ["block", "layers"]), *columns, *shares), lines)


def mean_of_known(values: Sequence[float]) -> float:
    """The mean of the numbers that have a meaning, NaN if none has."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
