"""`qrlora compare`: ways to fuse a subject and a style, compared on held-out image pairs with intervals."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config import TrainConfig
from . import console, options, tables
from .progress_bar import progress_bar

if TYPE_CHECKING:
    from ..comparison.fusion_comparison import RunSummary
    from ..comparison.summary_tables import SummaryTables

EXAMPLE = "qrlora compare --methods qr,lora --workers 2"


def compare(
    base: options.Base = TrainConfig.base,
    methods: options.ComparedMethods = "qr,lora",
    pairs: Annotated[int, typer.Option(help="Held-out subjects in held-out styles.")] = 27,
    seeds: Annotated[int, typer.Option(help="Images of each pair and method.")] = 4,
    first_seed: Annotated[int, typer.Option(help="Seed of training and of each pair's first image.")] = 0,
    split: Annotated[str, typer.Option(help="test, or dev: other subjects, to tune on.")] = "test",
    style_word: options.StyleWord = "<s>",
    equal: Annotated[str, typer.Option(help="rank, or parameters: equally many trained parameters.")] = "rank",
    rank: options.Rank = None,
    steps: options.TrainSteps = None,
    encoders: options.ComparisonEncoders = "",
    pictures: options.OwnPairs = "",
    decompose: options.Decompose = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder; what is done in it is kept.")] = Path(
        "out/fusion"
    ),
    workers: options.Workers = 1,
    ray: options.Ray = "",
    device: options.Device = "auto",
    dtype: Annotated[str, typer.Option(help="dtype of the base: float32, bfloat16 or float16.")] = "float32",
    overwrite: options.Overwrite = False,
) -> None:
    """Compare ways to fuse a subject and a style, each trained on one image.

    Every method sees the same images, prompts, layers, rank and number of updates.
    Beside them stand the ends of the scale: none (the prompt alone) and oracle (an adapter of the true image).
    What is done is kept: the same command goes on where it was stopped, and tries again what failed.
    """
    if workers < 1:
        raise ValueError(f"--workers must be 1 or more, got {workers}")
    settings: dict[str, Any] = {"base": base, "pairs": pairs, "seeds": seeds, "first_seed": first_seed, "split": split}
    settings |= {"methods": options.split_names(methods), "encoders": options.split_names(encoders), "equal": equal}
    settings |= {"rank": rank, "steps": steps, "pictures": pictures, "device": device, "dtype": dtype}
    settings |= {"style_word": style_word, "decompose": decompose}
    run_and_report(settings, output, workers, ray, overwrite)


def run_and_report(settings: dict[str, Any], output: Path, workers: int, ray: str, overwrite: bool) -> None:
    """Run a comparison, for `qrlora compare`: print its tables and write its report and sheet.

    Args:   settings: of ComparisonSettings.  others: the command's options.
    Raises: ValueError, OSError: settings that cannot be compared, outputs that cannot be written, jobs that failed.
    """
    from .. import optional_dependencies

    optional_dependencies.require("diffusers", reason="qrlora compare")
    from ..comparison import report, summary_tables
    from ..comparison.fusion_comparison import plan_comparison, run_comparison
    from ..comparison.settings import ComparisonSettings

    chosen = ComparisonSettings(**settings)
    report.check_outputs_writable(chosen, output, overwrite)
    with progress_bar("fusion") as bar:
        bar.stage("opening the base model")
        comparison = plan_comparison(chosen)

        def on_job(done: int, total: int, title: str, failure: str) -> None:
            bar.step(done, total, title)
            if failure:
                console.warn(f"{title}: {failure}")

        summary = run_comparison(comparison, output, workers, ray, on_job)
    found = summary_tables.summarise(summary)
    written = report.write_report(summary, found, output, chosen.equal, console.shell_command(*sys.argv[1:]))
    if found.table:
        written.append(save_sheet(summary, output))
    print_findings(summary, found)
    for path in written:
        console.say(str(path))
    if summary.missing:
        raise ValueError(f"{len(summary.missing)} jobs are missing; the same command tries them again")


def save_sheet(summary: "RunSummary", folder: Path) -> Path:
    """Write a comparison's contact sheet into its folder: the first picture of each method and pair."""
    from .. import plots
    from ..comparison import contact_sheet
    from .result_figures import sheet_of_cells

    settings = summary.comparison.settings
    title = f"{settings.base}, equal {settings.equal}: the first picture of each"
    sheet = sheet_of_cells(contact_sheet.sheet_rows(summary), title, summary.counts)
    return plots.save(sheet, folder / f"{settings.equal}.png")


def print_findings(summary: "RunSummary", found: "SummaryTables") -> None:
    """Print a comparison's tables and counts."""
    from ..comparison.report import compact_table, parts_table, verdict_lines
    from ..comparison.summary_tables import SPAN

    titles = {
        "value": "Mean over pairs [95 % interval], in hundredths",
        SPAN: "Share of the span none..oracle, in hundredths",
    }
    for kind, title in titles.items():
        columns, rows = compact_table(found, kind)
        if rows and len(columns) > 3:
            tables.print_table(columns, rows, title)
    if found.parts:
        tables.print_table(*parts_table(found), "Each adapter by itself, in hundredths")
        for line in verdict_lines(found):
            console.say(line)
    console.say(summary.counts)
