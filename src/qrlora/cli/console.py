"""Lines on standard output and standard error, and a command as a line that a shell takes."""

import io
import os
import re
import shlex
import sys
from pathlib import Path
from subprocess import list2cmdline

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from ..lora_keys import printable

out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)
"""Results: standard output; wide where that is a file or a pipe, for other programs to read."""
err = Console(stderr=True, highlight=False, soft_wrap=True)
"""Progress and errors: standard error, so that results can be piped."""
MAX_SHOWN = 10_000
"""Characters of a line or cell that are shown; names in a file may be of any length."""


def escape_what_streams_cannot_encode() -> None:
    """What the console, standard output and error, cannot spell is written as an escape, not an error at the end of
    long work."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def shell_command(*words: object) -> str:
    """A command of the console, `qrlora` and words, as one line that can be pasted into a shell."""
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
    err.print(Text.assemble(("error: ", "bold red"), printable(" ".join(message.split()), MAX_SHOWN)))


def warn(message: str) -> None:
    """What a person should know before going on, as one line."""
    err.print(Text.assemble(("warning: ", "bold yellow"), printable(message, MAX_SHOWN)))
