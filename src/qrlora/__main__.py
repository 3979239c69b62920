"""The command `qrlora`, and `python -m qrlora` for where that is not on the path."""

import sys


def main() -> None:
    """Run the command line. Ctrl-C while it is being imported ends it as quietly as later."""
    try:
        from .cli import main as run
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
