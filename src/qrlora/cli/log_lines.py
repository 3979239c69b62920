"""What the library logs and warns of while a command runs: a line each on standard error."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

from rich.text import Text

from ..lora_keys import printable
from .console import MAX_SHOWN, err, warn


class Lines(logging.Handler):
    """A line for each record."""

    def emit(self, record: logging.LogRecord) -> None:
        err.print(Text(printable(record.getMessage(), MAX_SHOWN)))


@contextlib.contextmanager
def log_to_standard_error() -> Iterator[None]:
    """Show the library's log and warnings on standard error for the length of a `with`. Of several processes the first
    one alone shows the log; all show warnings."""
    log, lines, level = logging.getLogger("qrlora"), Lines(), logging.INFO
    before = log.level
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_about: warn(" ".join(str(message).split()))
        if os.environ.get("RANK", "0") == "0":
            log.addHandler(lines)
            log.setLevel(level)
        try:
            yield
        finally:
            log.removeHandler(lines)
            log.setLevel(before)
