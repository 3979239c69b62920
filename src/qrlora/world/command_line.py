"""What the commands of the synthetic benchmark, `python -m qrlora.world.NAME`, share: their end and their numbers."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ..devices import choose_device
from ..error_messages import error_message

DEVICES = ("cpu", "cuda")
EXCERPT = "train on the shipped excerpt of what each hand drew where the full sheets are not here"


def run_command(
    work: Callable[[argparse.Namespace], Any], parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> None:
    """Run a command: what a person can do something about ends it in one line on standard error and with code 2, as
    the verbs of `qrlora` end; Ctrl-C with 130.

    Args: arguments: what was typed; None: of this process.
    """
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    options = parser.parse_args(arguments)
    try:
        work(options)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        message = error_message(error, out_of_memory="try a smaller batch")
        if options.traceback or message is None:
            raise
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)


def at_least(low: int, high: int | None = None, multiple: int = 1) -> Callable[[str], int]:
    """The type of an option that is a whole number within bounds, and a multiple of another."""

    def parse(text: str) -> int:
        value = int(text)
        if value < low or (high is not None and value > high):
            bounds = f"{low} or more" if high is None else f"{low} to {high}"
            raise argparse.ArgumentTypeError(f"must be {bounds}, got {value}")
        if value % multiple:
            raise argparse.ArgumentTypeError(f"must be a multiple of {multiple}, got {value}")
        return value

    parse.__name__ = "whole number"  # argparse: "invalid whole number value"
    return parse


def positive(text: str) -> float:
    """The type of an option that is a number above zero, infinity among them."""
    value = float(text)
    if math.isnan(value) or value <= 0:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")
    return value


positive.__name__ = "number"


def available_device(name: str) -> str:
    """A device of DEVICES. Raises ValueError: this machine has none."""
    choose_device(name)
    return name
