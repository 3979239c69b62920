"""The progress bar of a command on standard error: time since it began and time left."""

import contextlib
import math
import threading
import time
from collections.abc import Iterator
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from .console import err

BEGUN_AFTER, AGAIN_AFTER = 5.0, 30.0
"""Seconds. Where standard error is no terminal, work or a stage of it that takes longer than the first has a line that
says that it has begun, then one in such intervals as the second."""


class Clock(ProgressColumn):
    """Time since the bar appeared, and time left at the mean speed since the first report: loading a model and a
    resumed run's past do not count. rich's own clock stops when a stage before the work reaches its end."""

    def render(self, task: Task) -> Text:
        """The time since the bar began, and the time left."""
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
        """Begin a bar."""
        self._bars, self._what, self._stage, self._line = bars, what, "", what
        self._begun = self._shown = time.monotonic()
        self._announced = False
        clock: dict[str, Any] = {"begun": self._begun, "origin": math.inf, "since": 0.0}
        self._name = bars.add_task(escape(what), total=None, note="", count="", **clock)
        self._task = bars.tasks[0]

    def name(self, what: str) -> None:
        """The bar's name when another piece of work begins; its time left is counted anew."""
        if what != self._what:
            self._what = what
            self._begin("")
            self._task.fields["origin"] = math.inf

    def stage(self, what: str, share: float = 0.0) -> None:
        """What is being prepared, and which share of it (0..1) is done; each stage's time left is counted by itself."""
        if what != self._stage:
            self._begin(what)
            self._task.fields.update(origin=share, since=time.monotonic())
        done = f"{share:.0%}" if share else ""
        self._line = f"{self._what}: {what} {done}".rstrip()
        self._show(escape(f"{self._what}: {what}"), share, 1.0 if share else None, done, "")

    def step(self, done: int, total: int, note: str = "") -> None:
        """Move the bar: how many of how many, and a few words such as the loss."""
        if self._stage or self._task.fields["origin"] > done:
            self._begin("")
            self._task.fields.update(origin=done, since=time.monotonic())
        self._line = f"{self._what} {done}/{total} {note}".rstrip()
        self._show(escape(self._what), done, total, f"{done}/{total}", note)
        if not err.is_terminal and done == total:
            self._print_line()

    def print_line_if_due(self) -> None:
        """Where standard error is no terminal: a line of what is being done, if that takes long."""
        now = time.monotonic()
        if now - self._shown > AGAIN_AFTER or not self._announced and now - self._begun > BEGUN_AFTER:
            self._print_line(f" {Clock().render(self._task)}")

    def _print_line(self, clock: str = "") -> None:
        self._shown, self._announced = time.monotonic(), True
        err.print(escape(f"{self._line}{clock}"))

    def _begin(self, stage: str) -> None:
        """Begin a stage, or the work after all stages."""
        self._stage, self._begun, self._announced = stage, time.monotonic(), False

    def _show(self, what: str, done: float, total: float | None, count: str, note: str) -> None:
        self._task.fields.update(count=count, note=note)
        self._task.total = total  # update() takes None for "as it was"
        self._bars.update(self._name, description=what, completed=done)


@contextlib.contextmanager
def progress_bar(what: str, transient: bool = False) -> Iterator[Bar]:
    """A progress bar on standard error for the length of a `with`; where that is no terminal, a line now and then.

    Args: transient: whether the bar vanishes at the end: of work that is mostly short.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=32),
        TextColumn("{task.fields[count]}", markup=False),
        TextColumn("{task.fields[note]}", markup=False),
        Clock(),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=transient) as bars:
        bar = Bar(bars, what)
        with contextlib.nullcontext() if err.is_terminal else _lines_now_and_then(bar):
            yield bar


@contextlib.contextmanager
def _lines_now_and_then(bar: Bar) -> Iterator[None]:
    """Lines of a bar from a thread, since a stage that takes long reports nothing meanwhile."""
    ended = threading.Event()

    def print_lines() -> None:
        while not ended.wait(1.0):
            bar.print_line_if_due()

    thread = threading.Thread(target=print_lines, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
