"""`qrlora bench`: studies, with progress, tables and a contact sheet. Heavy rooms are imported when one runs."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import console

if TYPE_CHECKING:
    from ..comparison.figure_data import Cell, ReproducedResult
    from ..comparison.fusion_comparison import RunSummary
    from ..comparison.summary_tables import Findings

EXAMPLE = "Example: [bold]qrlora bench fusion --base tiny-flux --methods qr,lora --workers 2[/bold]"

Rank = Annotated[int | None, typer.Option(help="Directions.", show_default="the base's own")]
Steps = Annotated[int | None, typer.Option(help="Updates of each adapter.", show_default="the base's own")]
Workers = Annotated[int, typer.Option(help="Processes.")]
Ray = Annotated[str, typer.Option(help="A Ray cluster's address, or local.", show_default="no Ray")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
"""Options that both commands have."""

bench = typer.Typer(help="Compare methods, with intervals.", epilog=EXAMPLE, rich_markup_mode="rich")


@bench.callback()
def _bench() -> None:
    """Compare methods on held-out pictures, with intervals."""


@bench.command(epilog=EXAMPLE)
def fusion(
    base: Annotated[str, typer.Option(help="Base model.")] = "tiny-flux",
    methods: Annotated[
        str,
        typer.Option(help="With commas between; lora:rank=8:style/learning_rate=0.001 learns with other settings."),
    ] = "qr,lora",
    pairs: Annotated[int, typer.Option(help="Held-out things in held-out styles.")] = 27,
    seeds: Annotated[int, typer.Option(help="Pictures of each pair and method.")] = 4,
    first_seed: Annotated[int, typer.Option(help="Seed of learning and of each pair's first picture.")] = 0,
    split: Annotated[str, typer.Option(help="test, or dev: other things, to tune on.")] = "test",
    style_word: Annotated[
        str, typer.Option(help="What stands for the style in prompts: <s>, or a known word.")
    ] = "<s>",
    equal: Annotated[str, typer.Option(help="rank, or parameters: equally many trained numbers.")] = "rank",
    rank: Rank = None,
    steps: Steps = None,
    encoders: Annotated[
        str,
        typer.Option(
            help="dino-vits16,clip-vit-base-patch32,csd-vit-l ...", show_default="none; the first two with --pictures"
        ),
    ] = "",
    pictures: Annotated[
        str, typer.Option(help="A CSV file of your own pairs: content,style,style_shows.", show_default="the world's")
    ] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder; what is done in it is kept.")] = Path(
        "out/fusion"
    ),
    workers: Workers = 1,
    ray: Ray = "",
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="Numbers of the base: float32, bfloat16 or float16.")] = "float32",
    overwrite: console.Overwrite = False,
) -> None:
    """Compare ways to fuse a thing and a style, each learnt from one picture.

    Every method sees the same pictures, prompts, layers, rank and number of updates.
    Beside them stand the ends of the scale: none (the prompt alone) and oracle (an adapter of the true picture).
    What is done is kept: the same command goes on where it was stopped, and tries again what failed.
    """
    from .. import plots
    from ..comparison import contact_sheet, report, summary_tables
    from ..comparison.fusion_comparison import plan, work
    from ..comparison.settings import ComparisonSettings

    if workers < 1:
        raise ValueError(f"--workers must be 1 or more, got {workers}")
    listed = {"methods": _names(methods), "encoders": _names(encoders)}
    chosen: dict[str, Any] = {"pairs": pairs, "seeds": seeds, "first_seed": first_seed, "split": split, "equal": equal}
    chosen |= {"rank": rank, "steps": steps, "pictures": pictures, "device": device, "dtype": dtype}
    chosen["style_word"] = style_word
    settings = ComparisonSettings(base=base, **listed, **chosen)
    report.check(settings, output, overwrite)
    with console.progress("fusion") as bar:
        bar.stage("opening the base model")
        study = plan(settings)

        def on_job(done: int, total: int, title: str, failure: str) -> None:
            bar.step(done, total, title)
            if failure:
                console.warn(f"{title}: {failure}")

        account = work(study, output, workers, ray, on_job)
    found = summary_tables.findings(account)
    command = console.command(*sys.argv[1:])
    written = report.write(account, found, output, equal, command)
    if found.table:
        sheet = _sheet(
            contact_sheet.lines(account), f"{base}, equal {equal}: the first picture of each", account.counts
        )
        written.append(plots.save(sheet, output / f"{equal}.png"))
    show(account, found)
    for path in written:
        console.say(str(path))
    if account.missing:
        raise ValueError(f"{len(account.missing)} jobs are missing; the same command tries them again")


def reproduce(
    name: Annotated[str, typer.Argument(help="table1 to 4; figure2, 3, 5, 7 to 10, 14 to 20, 26; initialisation.")],
    base: Annotated[
        str, typer.Option(help="Base model.", show_default="tiny-flux, or that of the figure's backbone")
    ] = "",
    pairs: Annotated[int, typer.Option(help="Pairs of pictures, where the result is over pairs.")] = 27,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    rank: Rank = None,
    steps: Steps = None,
    encoders: Annotated[
        str, typer.Option(help="For table1: dino-vits16, clip-vit-base-patch32, csd-vit-l ...", show_default="none")
    ] = "",
    ratings: Annotated[str, typer.Option(help="For table1: levels.csv of qrlora survey report.")] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder; adapters in it are kept.")] = Path(
        "out/reproduce"
    ),
    workers: Workers = 1,
    ray: Ray = "",
    device: Device = "auto",
    overwrite: console.Overwrite = False,
) -> None:
    """Make one table or figure of the paper anew, beside the paper's own numbers where it has any.

    Writes a CSV file, a Markdown page and, where the paper has a picture, a picture.
    The pictures are those of the built-in world and the default base is tiny: read the page's notes before comparing.
    """
    from .. import plots
    from ..reproduction import paper_results as room

    with console.progress(name) as bar:
        bar.stage("opening the base model")

        def on_job(done: int, total: int, title: str, failure: str) -> None:
            bar.step(done, total, title)
            if failure:
                console.warn(f"{title}: {failure}")

        told: dict[str, Any] = {"rank": rank, "steps": steps, "workers": workers, "ray": ray, "device": device}
        told |= {"encoders": _names(encoders), "ratings": ratings}
        asked = room.ReproductionRequest(base=base, pairs=pairs, seed=seed, folder=output, on_job=on_job, **told)
        found = room.reproduce(name, asked, overwrite)
    written = room.write(name, found, asked, console.command(*sys.argv[1:]))
    if (figure := drawn(found)) is not None:
        written.append(plots.save(figure, output / f"{name}.png"))
    columns = list(found.rows[0])
    console.table(columns, [[room.shown(row[name]) for name in columns] for row in found.rows], found.title)
    for line in (*found.notes, *map(str, written)):
        console.say(line)


COMMANDS = ((reproduce, "qrlora reproduce table4 --base tiny-flux --pairs 4"),)
"""With its example."""


def drawn(found: "ReproducedResult") -> Any:
    """The picture of a reproduced result; None: tables alone have none."""
    from .. import plots
    from ..comparison.figure_data import Curves, Grid, Layers, Sheet

    match found.figure:
        case Curves(panels, x_label, y_label, bands):
            return plots.curves(panels, x_label, y_label, found.title, bands)
        case Grid(pictures, content_strengths, style_strengths):
            return plots.strength_grid(pictures, content_strengths, style_strengths, found.title)
        case Layers(layers, curves):
            return plots.layer_lines(layers, curves, found.title, spread="cosine")
        case Sheet(lines):
            return _sheet(lines, found.title)
    return None


def show(account: "RunSummary", found: "Findings") -> None:
    """The tables and the counts."""
    from ..comparison.report import compact
    from ..comparison.summary_tables import SPAN

    titles = {
        "value": "Mean over pairs [95 % interval], in hundredths",
        SPAN: "Share of the span none..oracle, in hundredths",
    }
    for kind, title in titles.items():
        columns, rows = compact(found, kind)
        if rows and len(columns) > 3:
            console.table(columns, rows, title)
    console.say(account.counts)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _sheet(lines: Sequence[Sequence["Cell"]], title: str, footer: str = "") -> Any:
    """A contact sheet."""
    from .. import plots

    panels = [plots.Panel(x.title, [x.picture], [x.note], [x.right]) for line in lines for x in line]
    return plots.sheet(panels, len(lines[0]), title, footer)
