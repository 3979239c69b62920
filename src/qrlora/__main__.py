"""The command `qrlora`, and `python -m qrlora` for where that is not on the path."""

import sys

from . import optional_dependencies


def main() -> None:
    """Run the command line. Ctrl-C while it is being imported ends it as quietly as later; without the extra for
    commands there is one line, and `doctor` all the same."""
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
