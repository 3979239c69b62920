"""The progress bar of `train` in a terminal or a notebook.  [tqdm]"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from .training_loop import Progress

Callbacks = tuple[Callable[[Progress], Any], Callable[[str, float], Any]]
"""on_step and on_stage of `train`."""


def is_visible() -> bool:
    """Whether a progress bar would be seen: standard error is a terminal, or Python runs in a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return sys.stderr.isatty() or "IPKernelApp" in getattr(shell, "config", ())


@contextlib.contextmanager
def training_progress_bar(
    name: str, on_step: Callable[[Progress], Any] | None, on_stage: Callable[[str, float], Any] | None
) -> Iterator[Callbacks]:
    """A progress bar on standard error for the length of a `with`: the stage, then steps, loss, time left.

    Yields: on_step and on_stage callbacks that update it and call the caller's own.
    """
    from tqdm.auto import tqdm

    # without a total there is no bar, only the description and the time since the start
    with tqdm(desc=name, unit="step", dynamic_ncols=True, bar_format="{desc} [{elapsed}]") as line:

        def stage(what: str, share: float) -> None:
            """Show a stage of training before the first update in the bar."""
            description = f"{name}: {what}{f' {share:.0%}' if share else ''}"
            if description != line.desc:
                line.set_description_str(description)
            if on_stage is not None:
                on_stage(what, share)

        def step(progress: Progress) -> None:
            """Show an update in the bar: its number, loss and the time left."""
            if line.total != progress.steps:
                line.bar_format = None
                line.set_description(name, refresh=False)
                line.reset(progress.steps)  # the time left counts from here; a resumed run's past does not
                line.initial = line.n = line.last_print_n = progress.step - 1
            line.set_postfix(loss=f"{progress.loss:.4f}", refresh=False)
            line.update()
            if on_step is not None:
                on_step(progress)

        yield step, stage
