"""`qrlora doctor`: versions, device, cache, what is missing, to paste into an issue."""

from . import console

EXAMPLE = "qrlora doctor"


def doctor() -> None:
    """Print versions, device, dtype, cache and what is missing or wrong, ready to paste into an issue."""
    from ..doctor import doctor_report

    for line in doctor_report().splitlines():
        console.say(line)
