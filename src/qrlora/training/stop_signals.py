"""Wishes that a run should end: heard by the loop, so that an update ends whole and a checkpoint is written."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Ctrl-C; what launchers and clusters send before they kill; a terminal or connection that is closed."""


@contextlib.contextmanager
def catch_stop_signals() -> Iterator[Callable[[], bool]]:
    """For the length of a `with` signals are noted, for the work to end when it is whole; a second Ctrl-C stops at
    once. A hangup that is ignored, as under nohup, stays so. Only a main thread gets signals.

    Yields: a function that says whether there was one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        if signal.SIGINT in asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    hangup = getattr(signal, "SIGHUP", None)
    deaf = {hangup} if hangup is not None and signal.getsignal(hangup) is signal.SIG_IGN else set()
    before = {number: signal.signal(number, note) for number in SIGNALS if number not in deaf}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
