"""Seconds until a command answers, beside `import torch` alone; each in a fresh process.

    python bench/startup.py

The goal: at most half a second more than `import torch`.
"""

import subprocess
import sys
from collections.abc import Callable

from harness import Row, arguments, report, seconds

COMMANDS = {
    "import qrlora": ["-c", "import qrlora"],
    "qrlora --help": ["-m", "qrlora", "--help"],
    "qrlora train --help": ["-m", "qrlora", "train", "--help"],
    "import the rooms of merge": ["-c", "import qrlora.merging, qrlora.files, qrlora.cli.filing"],
}
LIMIT = 0.5
"""Seconds beyond `import torch` that an answer may take."""


def fresh(command: list[str]) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    options = arguments(__doc__).parse_args()
    rounds = 3 if options.quick else 9
    ways = {"torch": ["-c", "import torch"], **COMMANDS}
    laps = {way: [] for way in ways}
    for command in ways.values():
        fresh(command)()  # its files are in memory from then on
    for _ in range(rounds):
        for way, command in ways.items():
            laps[way].append(seconds(fresh(command)))
    rows = []
    for way in COMMANDS:
        allowed = [lap + LIMIT for lap in laps["torch"]]
        rows.append(Row(way, {"ours": laps[way], "import torch + 0.5 s": allowed}, {"import torch + 0.5 s": "<=1x"}))
    report("Start-up", rows, options.folder)


if __name__ == "__main__":
    main()
