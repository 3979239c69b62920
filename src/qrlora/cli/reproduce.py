"""`qrlora reproduce`: one table or figure of the paper made anew, beside the paper's own numbers."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..config import TrainConfig
from . import console, options, tables
from .progress_bar import progress_bar

EXAMPLE = "qrlora reproduce table4 --pairs 4"


def reproduce(
    name: Annotated[
        str,
        typer.Argument(
            help="table1 to 4; figure2, 3, 5, 7 to 10, 14 to 20, 26; initialisation; crossed; attributes; measures."
        ),
    ],
    base: Annotated[
        str, typer.Option(help="Base model.", show_default=f"{TrainConfig.base}, or that of the figure's backbone")
    ] = "",
    pairs: Annotated[int, typer.Option(help="Pairs of pictures, where the result is over pairs.")] = 27,
    seed: options.Seed = 0,
    rank: options.Rank = None,
    steps: options.TrainSteps = None,
    encoders: Annotated[
        str,
        typer.Option(
            help="For table1: dino-vits16 ...; for measures: efficientnet-lite0,st-lpips.",
            show_default="none",
        ),
    ] = "",
    ratings: Annotated[str, typer.Option(help="For table1: levels.csv of qrlora survey report.")] = "",
    methods: Annotated[
        str,
        typer.Option(
            help="For crossed, attributes: qr, lora, pissa, lora:rank=16, oracle ...", show_default="the findings'"
        ),
    ] = "",
    split: Annotated[str, typer.Option(help="For crossed, attributes: test, or dev.")] = "test",
    truth: Annotated[
        str, typer.Option(help='For crossed: exact, or "by name": the styles are held-out hands.')
    ] = "exact",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder; adapters in it are kept.")] = Path(
        "out/reproduce"
    ),
    workers: options.Workers = 1,
    ray: options.Ray = "",
    device: options.Device = "auto",
    overwrite: options.Overwrite = False,
) -> None:
    """Make one table or figure of the paper anew, beside the paper's own numbers where it has any.

    "crossed", "attributes" and "measures" are the findings' own: contents in styles, those in frames, and how strict
    the scores are.

    Writes a CSV file, a Markdown page and, where the paper has a picture, a picture.
    The pictures are those of the built-in world and the default base is tiny: read the page's notes before comparing.
    """
    from .. import optional_dependencies

    optional_dependencies.require("diffusers", reason="qrlora reproduce")
    from .. import plots
    from ..reproduction import paper_results
    from .result_figures import figure_of

    with progress_bar(name) as bar:
        bar.stage("opening the base model")

        def on_job(done: int, total: int, title: str, failure: str) -> None:
            bar.step(done, total, title)
            if failure:
                console.warn(f"{title}: {failure}")

        settings: dict[str, Any] = {"rank": rank, "steps": steps, "workers": workers, "ray": ray, "device": device}
        settings |= {"encoders": options.split_names(encoders), "ratings": ratings}
        settings |= {"methods": options.split_names(methods), "split": split, "truth": truth}
        request = paper_results.ReproductionRequest(
            base=base, pairs=pairs, seed=seed, folder=output, on_job=on_job, **settings
        )
        found = paper_results.reproduce(name, request, overwrite)
    written = paper_results.write_result(name, found, request, console.shell_command(*sys.argv[1:]))
    picture = output / f"{name}.png"
    if (figure := figure_of(found)) is not None:
        written.append(plots.save(figure, picture))
    else:
        picture.unlink(missing_ok=True)  # of an earlier page, whose place this one takes
    for title, rows in {found.title: found.rows, **found.further}.items():
        columns = list(rows[0])
        tables.print_table(
            columns, [[paper_results.format_value(row[name]) for name in columns] for row in rows], title
        )
    for line in (*found.notes, *map(str, written)):
        console.say(line)
