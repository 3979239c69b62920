"""`qrlora survey`: rating studies. Heavy packages are imported when one runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import console, options, tables
from .named_values import VerbCommand
from .progress_bar import progress_bar

if TYPE_CHECKING:
    from ..survey.rater_store import Study

EXAMPLE = "qrlora survey new out/fusion --methods qr,lora --raters 60"
app = typer.Typer(help="Rating studies with people.", rich_markup_mode="rich")

Folder = Annotated[Path, typer.Argument(help="The study's folder.")]
Database = Annotated[
    str,
    typer.Option(
        envvar="QRLORA_SURVEY_DATABASE", help="postgresql://user@host/name", show_default="SQLite in the folder"
    ),
]


@app.callback()
def _survey() -> None:
    """Ask people which pictures are better: levels 0 to 5 as in the paper, and paired comparisons."""


@app.command(cls=VerbCommand, epilog=f"Example: [bold]{EXAMPLE}[/bold]")
def new(
    source: Annotated[
        Path, typer.Argument(help="Folder or page of compare, or a CSV file: method,pair,content,style,picture.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("out/survey"),
    methods: Annotated[str, typer.Option(help="With commas between.", show_default="all of the source")] = "",
    form: Annotated[str, typer.Option(help="levels, pairs.")] = "levels,pairs",
    raters: Annotated[int, typer.Option(help="How many are to finish; then it is over.")] = 60,
    seeds: Annotated[int, typer.Option(help="Pictures of each pair and method.")] = 1,
    title: Annotated[str, typer.Option(help="What raters read first.", show_default="Which picture fits best?")] = "",
    contact: Annotated[str, typer.Option(help="Whom raters can write to.")] = "",
    language: Annotated[str, typer.Option(help="Of the pages: en, de.")] = "en",
    seed: Annotated[int, typer.Option(help="Of the sheets.")] = 0,
) -> None:
    """Plan a study: copies the pictures under random names, writes plan.toml for you to read and edit."""
    with progress_bar("power") as bar:
        from ..survey.new_study import make_study as make

        names = [list(options.split_names(text)) for text in (methods, form)]
        told = {"raters": raters, "seeds": seeds, "title": title, "contact": contact, "language": language}
        plan = make(source, output, methods=names[0], forms=names[1], **told, seed=seed, on_step=bar.step)
    if plan.power:
        columns = ["raters", *plan.forms]
        rows = [[str(row[name]) for name in columns] for row in plan.power]
        what = f"Power: chance to see {plan.effect:g} levels, {plan.win_rate:.0%} wins"
        tables.print_table(columns, rows, what)
    console.say(
        f"{output / 'plan.toml'}: read and edit it, then: {console.shell_command('survey', 'serve', str(output))}"
    )


@app.command(
    cls=VerbCommand, epilog="Example: [bold]qrlora survey serve out/survey --public https://ratings.example.org[/bold]"
)
def serve(
    folder: Folder = Path("out/survey"),
    port: Annotated[int, typer.Option(help="For raters; 0: any.")] = 8800,
    researcher_port: Annotated[int, typer.Option(help="For you, on this machine only; 0: any.")] = 8801,
    listen: Annotated[str, typer.Option(help="Address; beyond this machine only with --public.")] = "127.0.0.1",
    public: Annotated[str, typer.Option(help="https:// address of the proxy with TLS in front.")] = "",
    per_address: Annotated[
        int, typer.Option(help="Raters who may begin at one address; a class behind one needs more.")
    ] = 10,
    database: Database = "",
) -> None:
    """Serve a study until Ctrl-C. Nothing that was answered is lost, however it ends."""
    from ..survey.serving import serve_study

    def on_ready(raters: str, researcher: str) -> None:
        console.say(f"for raters: {raters}")
        console.say(f"for you:    {researcher}")

    told = {"port": port, "researcher_port": researcher_port, "per_address": per_address}
    serve_study(folder, database, **told, address=listen, public=public, on_ready=on_ready)


@app.command(cls=VerbCommand, epilog="Example: [bold]qrlora survey report out/survey[/bold]")
def report(
    folder: Folder = Path("out/survey"),
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder.", show_default="FOLDER/report")] = None,
    database: Database = "",
) -> None:
    """Write what the answers say: a page with plots, a CSV file for each table."""
    study = _opened(folder, database)
    from ..survey.report import report_cell, write_report
    from ..survey.result_tables import TABLES

    found, written = write_report(study, output or folder / "report")
    for name in ("levels", "differences", "wins", "agreement"):
        if rows := found[name]:
            columns = [x for x in rows[0] if x not in ("low", "high", "answers", "inputs", "all")]
            tables.print_table(columns, [[report_cell(row, x) for x in columns] for row in rows], TABLES[name])
    finished = next(row["raters"] for row in found["raters"] if row["what"] == "finished")
    if finished < study.plan.raters:
        console.warn(f"{finished} of {study.plan.raters} raters have finished: the stopping rule is not met")
    console.say(str(written[-1]))


@app.command(cls=VerbCommand, epilog="Example: [bold]qrlora survey export out/survey --to label-studio[/bold]")
def export(
    folder: Folder = Path("out/survey"),
    to: Annotated[str, typer.Option(help="csv, or label-studio.")] = "csv",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder.", show_default="FOLDER/export")] = None,
    database: Database = "",
) -> None:
    """Write every answer for another program, without anything that tells who gave it."""
    study = _opened(folder, database)
    from ..survey.export_answers import export_answers

    for path in export_answers(study, to, output or folder / "export"):
        console.say(str(path))


@app.command(cls=VerbCommand, epilog="Example: [bold]qrlora survey erase out/survey 3f9c2a71d5e80b46[/bold]")
def erase(
    folder: Folder,
    rater: Annotated[str, typer.Argument(help="The number that the rater was shown, or the platform's.")],
    database: Database = "",
) -> None:
    """Remove a rater with every answer, for good. The sheet is free for somebody else."""
    study = _opened(folder, database)
    number = study.find_rater(rater)
    if not number:
        raise ValueError(f"no rater {rater!r} in {folder}")
    study.erase_rater(number)
    console.say(f"rater {number} and every answer of theirs are erased")


def _opened(folder: Path, database: str) -> "Study":
    from ..survey.rater_store import Study

    return Study(folder, database)
