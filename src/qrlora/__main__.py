"""The command `qrlora`, and `python -m qrlora` for where that is not on the path."""

import os
import sys

from . import optional_dependencies


def main() -> None:
    """Run the command line. Ctrl-C while it is being imported ends it as quietly as later; without the extra for
    commands there is one line, and `doctor` all the same."""
    _replace_closed_streams()
    try:
        from .cli import main as run
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except ModuleNotFoundError:
        try:
            optional_dependencies.require("cli", reason="the command line")
        except optional_dependencies.MissingExtra as error:
            sys.exit(_without_cli(error))
        raise
    run()


def _replace_closed_streams() -> None:
    """Let standard streams that are closed (`2>&-`, a service, a Windows program without a console) lead nowhere: to
    Python they are None, and the next file that is opened would have their number and get what libraries print."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115


def _without_cli(error: optional_dependencies.MissingExtra) -> int:
    """The exit code of a command where the libraries of commands are missing."""
    if sys.argv[1:] == ["doctor"]:
        from .doctor import doctor_report

        print(doctor_report())
        return 0
    print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
