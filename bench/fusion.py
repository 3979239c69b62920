"""Which way of fusing a subject and a style keeps most of both: a reduced table, 3 methods on 4 pairs.

    python bench/fusion.py

The whole table is `qrlora compare` with its own 27 pairs; see its --help.
"""

import subprocess
import sys
import tempfile

from harness import Row, arguments, report, seconds


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--base", default="tiny-flux")
    parser.add_argument("--methods", default="qr,lora,ziplora")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    settings = {name: getattr(options, name) for name in ("base", "methods", "workers", "device")}
    settings |= {"pairs": 1, "steps": 4} if options.quick else {"pairs": 4}
    words = [f"--{name}={value}" for name, value in settings.items()]
    with tempfile.TemporaryDirectory() as folder:  # what is done there is done anew
        command = [sys.executable, "-m", "qrlora", "bench", "fusion", *words, f"--output={folder}"]
        took = seconds(lambda: subprocess.run(command, check=True))
    row = Row(
        f"{options.methods} on {settings['pairs']} pairs",
        {"ours": [took], "15 minutes": [900.0]},
        {"15 minutes": "<=1x"},
    )
    report("Reduced table of fusions", [row], options.folder)


if __name__ == "__main__":
    main()
