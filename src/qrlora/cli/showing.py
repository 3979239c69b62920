"""What `qrlora demo` does around the demonstration: progress, the contact sheet, the closing lines."""

from pathlib import Path
from typing import Any

from .. import plots
from ..training import Progress
from ..world.demo import Row
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
) -> None:
    """Run the demonstration and draw its sheet, `demo.png`, in the folder.

    Raises: as `world.demo.demo`.
    """
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
        }
        heard: dict[str, Any] = {"on_step": on_step, "on_stage": bar.stage}
        rows = run(output, content, style, style_shows=style_shows, **settings, **heard)
    plots.save(drawn(rows, f"{method} on {base}, seed {seed}"), output / "demo.png")
    judged = [(row, verdict) for row in rows if row.title.startswith("merged") for verdict in row.verdicts]
    right = [row.right(verdict) for row, verdict in judged]
    if all(answer is not None for answer in right):
        console.say(f"merged: {sum(map(bool, right))} of {len(right)} pictures show the right thing in the right style")
    for name in ("content.safetensors", "style.safetensors", "merged.safetensors", "demo.png"):
        console.say(str(output / name))


def drawn(rows: list[Row], footer: str) -> Any:
    """The contact sheet: what is given and what is true on top, below a line for each adapter."""
    single = [row for row in rows if len(row.pictures) == 1]
    columns = max(3, *(len(row.pictures) for row in rows))
    panels = [_panel(row) for row in single if row.title != "the true picture"]
    panels += [_panel(row) for row in single if row.title == "the true picture"]
    panels += [_panel(row) for row in rows if row not in single]
    return plots.sheet(panels, columns, title="A thing and a style, each from one picture, added", footer=footer)


def _panel(row: Row) -> plots.Panel:
    notes = [f"{v.content} {v.content_probability:.0%}\n{v.style} {v.style_probability:.0%}" for v in row.verdicts]
    return plots.Panel(row.title, row.pictures, notes, [row.right(verdict) for verdict in row.verdicts])
