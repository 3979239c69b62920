"""What `qrlora demo` does around the demonstration: progress, the contact sheet, the closing lines."""

from pathlib import Path
from typing import Any

from .. import plots
from ..built_in_bases import built_in_bases
from ..training import Progress
from ..world.classified_images import ClassifiedImages
from ..world.classifiers import Classification
from ..world.demo import demo as run
from . import console


def demo(
    output: Path,
    content: Path | None,
    style: Path | None,
    style_shows: str,
    base: str,
    method: str,
    steps: int | None,
    count: int,
    seed: int,
    device: str,
    overwrite: bool,
) -> None:
    """Run the demonstration and draw its sheet, `demo.png`, in the folder.

    Raises: as `world.demo.demo`.
    """
    limit = limits(base) if content or style else ""
    if limit:
        real = console.command("train", "recipes/content_sdxl.toml", f"image={content or 'my_dog.jpg'}")
        console.warn(f"{limit}; for photographs learn on a real base, such as {real}")
    with console.progress("demo") as bar:

        def on_step(what: str, progress: Progress) -> None:
            bar.name(f"learning {what}")
            bar.step(progress.step, progress.steps, f"loss {progress.loss:.4f}")

        settings: dict[str, Any] = {
            "base": base,
            "method": method,
            "steps": steps,
            "count": count,
            "seed": seed,
            "device": device,
            "overwrite": overwrite,
        }
        heard: dict[str, Any] = {"on_step": on_step, "on_stage": bar.stage}
        rows = run(output, content, style, style_shows=style_shows, **settings, **heard)
    footer = "\n".join(filter(None, (f"{method} on {base}, seed {seed}", limit)))
    plots.save(drawn(rows, footer), output / "demo.png", overwrite=True)
    judged = [(row, prediction) for row in rows if row.title.startswith("merged") for prediction in row.predictions]
    right = [row.is_correct(prediction) for row, prediction in judged]
    if right and not limit:
        console.say(f"merged: {sum(map(bool, right))} of {len(right)} pictures show the right thing in the right style")
    for name in ("content.safetensors", "style.safetensors", "merged.safetensors", "demo.png"):
        console.say(str(output / name))


def drawn(rows: list[ClassifiedImages], footer: str) -> Any:
    """The contact sheet: what is given and what is true on top, below a line for each adapter."""
    single = [row for row in rows if len(row.images) == 1]
    columns = max(3, *(len(row.images) for row in rows))
    panels = [_panel(row) for row in single if row.title != "the true picture"]
    panels += [_panel(row) for row in single if row.title == "the true picture"]
    panels += [_panel(row) for row in rows if row not in single]
    return plots.sheet(panels, columns, title="A thing and a style, each from one picture, added", footer=footer)


def limits(base: str) -> str:
    """What cannot be expected of a built-in base with one's own pictures; "" of another."""
    if base not in built_in_bases():
        return ""
    return f"{base} knows drawings only and has never seen a photograph; what yours should become, nobody judges"


def _panel(row: ClassifiedImages) -> plots.Panel:
    notes = [_note(row, prediction) for prediction in row.predictions]
    return plots.Panel(row.title, row.images, notes, [row.is_correct(prediction) for prediction in row.predictions])


def _note(row: ClassifiedImages, prediction: Classification) -> str:
    """What the judges see, of what somebody knows: for anything else they would name the nearest of their world."""
    seen = (
        (row.content, prediction.content, prediction.content_probability),
        (row.style, prediction.style, prediction.style_probability),
    )
    return "\n".join(f"{said} {probability:.0%}" for true, said, probability in seen if true)
