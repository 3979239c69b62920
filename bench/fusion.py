"""Which way of fusing a thing and a style keeps most of both: a reduced table, 3 methods on 4 pairs.

    python bench/fusion.py

The whole table is `qrlora bench fusion` with its own 27 pairs; see its --help. Jobs done in the folder are kept.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="tiny-flux")
    parser.add_argument("--methods", default="qr,lora,ziplora")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("out/bench/fusion"))
    arguments = parser.parse_args()
    words = [f"--{name}={getattr(arguments, name)}" for name in ("base", "methods", "pairs", "device", "workers")]
    started = time.monotonic()
    command = [sys.executable, "-m", "qrlora", "bench", "fusion", *words, f"--output={arguments.folder}"]
    code = subprocess.run(command).returncode
    print(f"{time.monotonic() - started:.0f} s")
    sys.exit(code)


if __name__ == "__main__":
    main()
