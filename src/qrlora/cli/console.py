"""What the commands print: tables, a training run's progress, errors in one line. Takes values, decides nothing."""

import ast
import contextlib
import dataclasses
import inspect
import io
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from subprocess import list2cmdline
from typing import Annotated, Any

import typer
from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from ..lora_keys import printable

out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)
"""Results: standard output; wide where that is a file or a pipe, for other programs to read."""
err = Console(stderr=True, highlight=False, soft_wrap=True)
"""Progress and errors: standard error, so that results can be piped."""
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there already.")]
"""An option of every command that writes files."""
LONGEST = 10_000
"""Characters of a line or cell that are shown; names in a file may be of any length."""


def speak_any_encoding() -> None:
    """What standard output and error cannot spell is written as an escape, not an error at the end of long work."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def command(*words: object) -> str:
    """`qrlora` and words as one line that can be pasted into a shell."""
    line = ["qrlora", *(f"./{x}" if isinstance(x, Path) and str(x).startswith("-") else str(x) for x in words)]
    if os.name != "nt":
        return shlex.join(line)
    # list2cmdline quotes for spaces alone, but < and > of a trigger would be redirections
    return " ".join(f'"{x}"' if re.search(r"[<>&|^%()]", x) and " " not in x else list2cmdline([x]) for x in line)


def say(text: str) -> None:
    """One line of result; text is shown as it is, brackets too."""
    out.print(escape(text))


def fail(message: str) -> None:
    """An error as one line: what is wrong and the way out."""
    err.print(Text.assemble(("error: ", "bold red"), printable(" ".join(message.split()), LONGEST)))


def warn(message: str) -> None:
    """What a person should know before going on, as one line."""
    err.print(Text.assemble(("warning: ", "bold yellow"), printable(message, LONGEST)))


class Name:
    """A cell that breaks at spaces and at the dots and slashes of names, elsewhere only where that is not enough."""

    def __init__(self, text: str) -> None:
        self.parts = re.findall(r"[^ ./,]+[ ./,]*|[ ./,]+", text)
        self.least = max((cell_len(x.rstrip()) for part in self.parts for x in _shorter(part)), default=0)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        most = min(cell_len("".join(self.parts)), options.max_width)
        return Measurement(min(self.least, most), most)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = [""]
        for part in self.parts:
            for piece in [part] if cell_len(part.rstrip()) <= options.max_width else _shorter(part):
                if lines[-1] and cell_len(lines[-1] + piece.rstrip()) > options.max_width:
                    lines.append("")
                lines[-1] += piece
        yield Text("\n".join(line.rstrip() for line in lines), justify=options.justify, overflow="fold")


def _shorter(part: str) -> list[str]:
    """A name without dots in pieces that end in _ or -."""
    return re.findall(r"[^_-]+[_-]*|[_-]+", part)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", numbers: bool = True) -> None:
    """A table; columns after the first are set to the right if they hold numbers. No head if no column has a name.
    What is too wide is broken at spaces and after the signs that part a name."""
    grid = Table(box=box.SIMPLE_HEAD, show_header=any(columns), collapse_padding=True, pad_edge=False)
    lines = [[Name(printable(cell, LONGEST)) for cell in line] for line in (columns, *rows)]
    for k, column in enumerate(lines[0]):
        least = max(line[k].least for line in lines)
        grid.add_column(column, justify="right" if k and numbers else "left", min_width=least)
    for line in lines[1:]:
        grid.add_row(*line)
    if out.measure(grid, options=out.options.update(max_width=10**6)).minimum > out.width:
        for column in grid.columns:  # better broken anywhere than cut off
            column.min_width = None
    if title:
        out.print(Text(title, style="bold"))
    out.print(grid, soft_wrap=False)


def number(value: float, digits: int = 3) -> str:
    """A number for a table; a dash where it has no meaning."""
    return "-" if math.isnan(value) else f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no "-0.000"


def count(value: int) -> str:
    """A count with its order of magnitude: "21,299,200 (21.3 M)"."""
    return f"{value:,} ({value / 1e6:.1f} M)" if value >= 1e5 else f"{value:,}"


def size(path: Path) -> str:
    """A file's size in MB."""
    return f"{path.stat().st_size / 1e6:.1f} MB"


def settings(kind: type) -> list[tuple[str, str, str]]:
    """(name, default, meaning) of every setting of a config, from the docstring under each field."""
    (tree,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(tree, ast.ClassDef)
    docs = {
        field.target.id: inspect.cleandoc(doc.value.value)
        for field, doc in zip(tree.body, tree.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant) and isinstance(doc.value.value, str)
    }
    return [
        (f.name, "" if f.default in (None, "", ()) else _written(f.default), " ".join(docs[f.name].split()))
        for f in dataclasses.fields(kind)
    ]


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


class Clock(ProgressColumn):
    """Time since the bar appeared, and time left at the mean speed since the first report: loading a model and a
    resumed run's past do not count. rich's own clock stops when a stage before the work reaches its end."""

    def render(self, task: Task) -> Text:
        now, done = time.monotonic(), task.completed - task.fields["origin"]
        text = Text(_clock(now - task.fields["begun"]), style="cyan")
        if task.total and done > 0:
            text.append(f", {_clock((now - task.fields['since']) * (task.total - task.completed) / done)} left")
        return text


def _clock(seconds: float) -> str:
    """ "1:02:03" or "2:03"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


class Bar:
    """One line of progress: first what is being prepared, then how far the work is."""

    def __init__(self, bars: Progress, what: str) -> None:
        self._bars, self._what, self._shown = bars, what, time.monotonic()
        clock: dict[str, Any] = {"begun": self._shown, "origin": math.inf, "since": 0.0}
        self._name = bars.add_task(escape(what), total=None, note="", count="", **clock)
        self._task = bars.tasks[0]

    def name(self, what: str) -> None:
        """Another piece of work begins; its time left is counted anew."""
        if what != self._what:
            self._what = what
            self._task.fields["origin"] = math.inf

    def stage(self, what: str, share: float = 0.0) -> None:
        """What is being prepared, and which share of it (0..1) is done."""
        self._show(escape(f"{self._what}: {what}"), share, 1.0 if share else None, f"{share:.0%}" if share else "", "")

    def step(self, done: int, total: int, note: str = "") -> None:
        """How many of how many, and a few words such as the loss."""
        if self._task.fields["origin"] > done:
            self._task.fields.update(origin=done, since=time.monotonic())
        self._show(escape(self._what), done, total, f"{done}/{total}", note)
        if not err.is_terminal and (time.monotonic() - self._shown > 30 or done == total):
            self._shown = time.monotonic()
            err.print(escape(f"{self._what} {done}/{total} {note}".rstrip()))

    def _show(self, what: str, done: float, total: float | None, count: str, note: str) -> None:
        self._task.fields.update(count=count, note=note)
        self._task.total = total  # update() takes None for "as it was"
        self._bars.update(self._name, description=what, completed=done)


@contextlib.contextmanager
def progress(what: str) -> Iterator[Bar]:
    """A bar on standard error for the length of a `with`; where that is no terminal, a line now and then."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=32),
        TextColumn("{task.fields[count]}", markup=False),
        TextColumn("{task.fields[note]}", markup=False),
        Clock(),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal) as bars:
        yield Bar(bars, what)


OUT_OF_MEMORY = (
    "out of memory: try dtype=bfloat16, offload=true and quantize=int8 (train), "
    "--dtype bfloat16 --offload --quantize int8 (generate, grid), a smaller resolution or size, or device=cpu"
)


def for_people(error: Exception) -> str | None:
    """What a person can do something about, in one line; None for a slip of ours, which shows its trace."""
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return OUT_OF_MEMORY
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) if isinstance(error, ValueError | OSError) else None
