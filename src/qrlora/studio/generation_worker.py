"""The process that generates images: keeps the base and the adapters of the last image open for the next one.

`python -m qrlora.studio.generation_worker FOLDER DEVICE`: a line of JSON in for each picture, one out when it lies in
the folder's drawings. Ends with whoever asks.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import qrlora

from .job_worker import save_image, user_message
from .jobs import ADAPTER


@functools.lru_cache(1)
def open_base(base: str, device: str, **opening: Any) -> Any:
    """A base; the one before is forgotten."""
    return qrlora.open_base(base, device, **opening)


load_adapter = functools.lru_cache(8)(qrlora.load)
"""(file) -> its adapter; a job's adapter never changes."""


def generate_image(wanted: Mapping[str, Any], jobs: Path, device: str) -> Any:
    """Generate one image that the studio asked for. Raises ValueError, OSError: as `qrlora.generate`."""
    base = open_base(wanted["base"], device, **wanted["opening"])
    adapters = [(load_adapter(jobs / name / ADAPTER), strength) for name, strength in wanted["adapters"]]
    names = ("negative_prompt", "seed", "steps", "guidance", "size")
    settings = {name: wanted[name] for name in names if wanted.get(name) is not None}
    return qrlora.generate(base, wanted["prompt"], adapters, **settings)[0]


def main(folder: Path, device: str) -> None:
    """Generate the images that come on standard input, one JSON line each, for the studio of a folder."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    for line in sys.stdin:
        wanted = json.loads(line)
        try:
            save_image(generate_image(wanted, folder / "jobs", device), folder / "drawings" / f"{wanted['name']}.png")
            answer = {}
        except Exception as error:
            answer = {"failed": user_message(error)}
            if not isinstance(error, ValueError | OSError):
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
