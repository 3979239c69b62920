"""Seconds until a command prints, beside `import torch` alone; each in a fresh process.

    python bench/startup.py

The goal: at most half a second more than `import torch`.
"""

import statistics
import subprocess
import sys
from collections.abc import Callable

from harness import Row, above, arguments, laps, report

COMMANDS = {
    "import qrlora": ["-c", "import qrlora"],
    "qrlora --help": ["-m", "qrlora", "--help"],
    "qrlora train --help": ["-m", "qrlora", "train", "--help"],
    "import the rooms of merge": ["-c", "import qrlora.merging, qrlora.files, qrlora.cli.adapter_files"],
}
LIMIT = 0.5
"""Seconds beyond `import torch` that a command may take."""


def fresh(command: list[str]) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    options = arguments(__doc__).parse_args()
    rounds = 3 if options.quick else 9
    ways = {"python": ["-c", "pass"], "torch": ["-c", "import torch"], **COMMANDS}
    took = laps({way: fresh(command) for way, command in ways.items()}, rounds)
    rows = []
    for way in COMMANDS:
        allowed = [lap + LIMIT for lap in took["torch"]]
        row = Row(way, {"ours": took[way], "import torch + 0.5 s": allowed}, {"import torch + 0.5 s": "<=1x"})
        rows.append(above(row, statistics.median(took["python"]), "python alone"))
    report("Start-up", rows, options.folder)


if __name__ == "__main__":
    main()
