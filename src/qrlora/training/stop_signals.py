"""SIGINT, SIGTERM and SIGHUP during training: the update is finished and a checkpoint written before it stops."""

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
    """Record stop signals for the length of a `with`, instead of stopping at once; a second Ctrl-C does stop at once. A
    SIGHUP that is ignored, as under nohup, stays ignored. Python delivers signals to the main thread only.

    Yields: () -> whether a signal has come.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    received: list[int] = []

    def record(number: int, frame: Any) -> None:
        if signal.SIGINT in received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    hangup = getattr(signal, "SIGHUP", None)
    ignored = {hangup} if hangup is not None and signal.getsignal(hangup) is signal.SIG_IGN else set()
    before = {number: signal.signal(number, record) for number in SIGNALS if number not in ignored}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
