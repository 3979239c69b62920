"""How a command is ended from outside: whole, with its temporary files and workers gone."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

POLITE = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""What clusters and `kill` send before they kill; a terminal or connection that is closed."""


@contextlib.contextmanager
def stop_signals_as_keyboard_interrupt() -> Iterator[None]:
    """For the length of a `with` stop signals end a command as Ctrl-C does, unless they are ignored, as under nohup; by
    themselves they would end it on the spot. A training has its own way, see `training.stop_signals`."""

    def stop(number: int, frame: Any) -> None:
        """A stop signal as a KeyboardInterrupt."""
        raise KeyboardInterrupt(f"stopped by {signal.Signals(number).name}")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in POLITE if signal.getsignal(number) is signal.SIG_DFL]
    for number in heard:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, signal.SIG_DFL)
