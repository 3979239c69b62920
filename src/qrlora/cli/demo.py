"""`qrlora demo`: a subject and a style trained, merged and drawn, as one contact sheet and three adapter files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config import TrainConfig
from . import console, options
from .progress_bar import progress_bar
from .unknown_words import warn_of_unknown_words

if TYPE_CHECKING:
    from ..training import Progress

EXAMPLE = "qrlora demo --content my-dog.png --style painting.png --style-shows cat"


def demo(
    content: Annotated[Path | None, typer.Option(help="An image of a subject.", show_default="one of ours")] = None,
    style: Annotated[Path | None, typer.Option(help="An image in a style.", show_default="one of ours")] = None,
    style_shows: Annotated[
        str,
        typer.Option(
            help="What your style image shows, in a word: cat, house.",
            show_default="the nearest that a built-in base knows, else thing",
        ),
    ] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("out/demo"),
    base: options.Base = TrainConfig.base,
    method: options.Method = "qr",
    steps: options.TrainSteps = None,
    count: Annotated[int, typer.Option(help="Images of each kind.")] = 4,
    seed: options.Seed = 0,
    placeholders: Annotated[
        bool,
        typer.Option("--placeholders", help="Call them <c> and <s>, not by the nearest words that the base knows."),
    ] = False,
    one_picture: Annotated[
        bool, typer.Option("--one-picture", help="Learn the subject without filtered copies of its picture.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Few updates: shows the workings, not the method.")] = False,
    device: options.Device = "auto",
    overwrite: options.Overwrite = False,
) -> None:
    """Train a subject and a style on two images, merge them, draw: one contact sheet, three adapter files."""
    if quick:
        steps, count = steps or 10, min(count, 2)
    settings = {"base": base, "method": method, "steps": steps, "count": count, "seed": seed}
    settings |= {"known_words": not placeholders, "filters": not one_picture}
    run_demo(output, content, style, style_shows=style_shows, **settings, device=device, overwrite=overwrite)


def run_demo(output: Path, content: Path | None, style: Path | None, *, base: str, **settings: Any) -> None:
    """Run the demonstration and draw its sheet, `demo.png`, in the folder.

    Args:   settings: of `world.demo.demo`.
    Raises: as `world.demo.demo`.
    """
    from .. import optional_dependencies

    optional_dependencies.require("diffusers", reason="qrlora demo")
    from .. import plots
    from ..world import demo as world_demo
    from . import demo_sheet

    limit = demo_sheet.limits_of_base(base) if content or style else ""
    if limit:
        real = console.shell_command("train", "recipes/content_sdxl.toml", f"image={content or 'my_dog.jpg'}")
        console.warn(f"{limit}; for photographs train on a real base, such as {real}")
    warn_of_unknown_words(base, [settings["style_shows"]] if style else [])
    world_demo.check_replaceable(output / "demo.png", settings["overwrite"])
    with progress_bar("demo") as bar:

        def on_step(what: str, progress: "Progress") -> None:
            bar.name(f"training {what}")
            bar.step(progress.step, progress.steps, f"loss {progress.loss:.4f}")

        def on_stage(what: str, share: float) -> None:
            bar.name("demo")  # what was trained last has ended
            bar.stage(what, share)

        rows = world_demo.demo(output, content, style, base=base, **settings, on_step=on_step, on_stage=on_stage)
    made_with = f"qrlora demo: method {settings['method']}, base {base}, seed {settings['seed']}"
    sheet = demo_sheet.contact_sheet(rows, "\n".join(filter(None, (made_with, limit))))
    plots.save(sheet, output / "demo.png", overwrite=True)
    merged = [row for row in rows if row.title.startswith(world_demo.MERGED)]
    right = [row.is_correct(prediction) for row in merged for prediction in row.predictions]
    if right and content is None and style is None:  # of the caller's own pictures nobody knows what is right
        found = f"{sum(map(bool, right))} of {len(right)} pictures"
        console.say(f"merged: {found} show the right subject in the right style")
    for name in ("content.safetensors", "style.safetensors", "merged.safetensors", "demo.png"):
        console.say(str(output / name))
