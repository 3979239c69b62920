"""`qrlora doctor`: versions, device, cache, what is missing, to paste into an issue."""

from .. import doctor
from . import console

EXAMPLE = "qrlora doctor"


def print_report() -> None:
    """Print versions, device, dtype, cache and what is missing or wrong, ready to paste into an issue."""
    for line in doctor.report().splitlines():
        console.say(line)
