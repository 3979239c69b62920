"""`qrlora bases`: the built-in and the public base models, and how much of their directions two bases share."""

from pathlib import Path
from typing import Annotated

import typer

from ..layouts import LAYOUTS
from . import adapter_files, arguments, console, options, process_settings, tables
from .progress_bar import progress_bar

EXAMPLE = "qrlora bases"


def bases(
    base: Annotated[str, typer.Argument(help="A base that adapters are trained on.", show_default="")] = "",
    other: Annotated[str, typer.Argument(help="One of the same kind to draw with.", show_default="")] = "",
    targets: Annotated[
        str | None, typer.Option(help="{presets}, or name endings.", show_default="the first base's own")
    ] = None,
    rank: options.Rank = None,
    side: Annotated[str, typer.Option(help="input, as method qr, or output, as qr-output.")] = "input",
) -> None:
    """List the base models that are built in and the public ones of every family, with licence, size, the smallest card
    that trains them, and what each is good for.

    Given two bases of one family, say how much of the span of their leading directions they share: whether an adapter
    that is trained on the first can be drawn with the second.
    """
    from .. import optional_dependencies

    optional_dependencies.require("diffusers", reason="qrlora bases")
    arguments.check_basis_options(rank, side)
    if base:
        return print_shared_span(base, other, targets, rank, side)
    print_built_in_bases()
    print_public_bases()


def print_built_in_bases() -> None:
    """The table of the bases in this package, and how to get those of another one."""
    from ..built_in_bases import SEPARATE, built_in_bases, installation_hint

    columns = ("built in", "family", "size", "pixels", "rank", "steps", "about")
    if folders := list(built_in_bases().values()):
        tables.print_table(columns, [base_row(folder) for folder in folders], numbers=False)
    for hint in filter(None, map(installation_hint, SEPARATE)):
        console.say(hint)


def print_public_bases() -> None:
    """The tables of the layouts' public models, and of their families' presets of targets."""
    console.say("Any of these can be a base too: a hub name, a diffusers folder, one .safetensors checkpoint.")
    public = {short: x for layout in LAYOUTS.values() for short, x in layout.variants.items()}
    tables.print_table(("base", "hub name"), [(short, x.hub) for short, x in public.items()], numbers=False)
    rows = [(short, f"{x.billions:.2f} B", f"{x.card} GB", x.licence, x.good_for) for short, x in public.items()]
    tables.print_table(("base", "parameters", "card", "licence", "good for"), rows, numbers=False)
    console.say("card: the smallest that `qrlora estimate BASE` finds enough, counted and not measured.")
    presets = [(name, ", ".join(layout.targets)) for name, layout in LAYOUTS.items()]
    tables.print_table(("family", "targets"), presets, numbers=False)
    console.say("Where a base has no settings of its own, the paper's are taken.")


def base_row(folder: Path) -> tuple[str, ...]:
    """A built-in base's folder as a row: family, size, its default resolution, rank and steps."""
    from ..families import FAMILIES
    from ..json_objects import read_json_object

    index = read_json_object(folder / "model_index.json")
    kind = index.get("_class_name")
    family = next((x for x in FAMILIES.values() if kind in (x.pipeline, *x.compatible_pipelines)), None)
    path = folder / "qrlora.json"
    own = read_json_object(path) if path.is_file() else {}
    defaults = family.defaults.with_base_defaults(own.get("defaults", {})) if family else None
    megabytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    sizes = (str(x) for x in (defaults.resolution, defaults.rank, defaults.steps)) if defaults else ("", "", "")
    return folder.name, family.name if family else "unknown", f"{megabytes:.1f} MB", *sizes, own.get("about", "")


def print_shared_span(base: str, other: str, targets: str | None, rank: int | None, side: str) -> None:
    """Print how much of their directions two bases share: `analysis.shared_span`, the layers that share least first,
    and the mean.

    Raises: ValueError: one base alone; bases of two families; layers of other shapes.
    """
    from ..analysis import shared_span

    if not other:
        raise ValueError(f"give two bases to compare: qrlora bases {base} OTHER, or none to list them")
    first, second = (adapter_files.open_base_for_weights(name) for name in (base, other))
    if first.family is not second.family:
        raise ValueError(
            f"{base} is a {first.family.name} base, {other} a {second.family.name} base: no layer is shared"
        )
    process_settings.use_one_thread()
    chosen = targets or first.defaults.targets
    count = first.defaults.rank if rank is None else rank
    with progress_bar("finding the leading directions of both", transient=True):
        rows = shared_span(first.weights(chosen), second.weights(chosen), count, side)
    rows = sorted(rows, key=lambda row: row.overlap)
    shown = [(row.layer, f"{row.overlap:.2%}", f"{row.kept:.2%}") for row in rows]
    mean = [sum(getattr(row, name) for row in rows) / len(rows) for name in ("overlap", "kept")]
    columns = ("layer", "span shared", "of the other's own")
    title = f"{count} leading {side} directions of {base} and of {other}"
    tables.print_table(columns, [*shown, ("mean", *(f"{x:.2%}" for x in mean))], title)
    console.say(
        "span shared: mean squared cosine of the principal angles. of the other's own: squared Frobenius norm of the "
        "other's weight along the first base's directions, as a share of that along its own leading ones."
    )
