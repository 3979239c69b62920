"""Seconds of a basis at its first start and at the next, against a plain read of the file that holds it.

    python bench/cache.py

The weights are a part of SDXL's self-attention in shape (--quick: a few small ones), random, in memory. A second start
reads a sample of each weight to know the base, then the file, and checks it; "rank 16" is the beginning of rank 64.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from harness import Row, arguments, compare, report, seconds
from qrlora.basis import cache_folder, cached_basis, weights_key


def from_disk(path: Path) -> Callable[[Callable[[], object]], float]:
    """Seconds of a call when the file is not in memory, as after a restart (Linux)."""

    def measure(work: Callable[[], object]) -> float:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return seconds(work)

    return measure


def main() -> None:
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    count, width = (8, 256) if options.quick else (60, 1280)
    layers = [(f"blocks.{k}.to_q", torch.randn(width, width, generator=generator).half()) for k in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["QRLORA_CACHE"] = folder
        first = seconds(lambda: cached_basis(layers, 64))
        cached_basis(layers, 16)
        (path,) = Path(cache_folder()).glob("*.safetensors")
        title = f"{count} layers of {width}x{width}, {path.stat().st_size / 1e6:.0f} MB"
        ways = {
            "second start": lambda: cached_basis(layers, 64),
            "plain read": path.read_bytes,
            "its key alone": lambda: weights_key(layers, "input"),
            "rank 16": lambda: cached_basis(layers, 16),
        }
        row = compare(f"{title}, in memory", ways, 9, {"plain read": "<=1.5x"})
        cold = compare(f"{title}, on disk", ways, 9, {"plain read": "<=1.5x"}, measure=from_disk(path))
        again = Row(
            "first start", {"second start": row.measured["second start"][:1], "first": [first]}, {"first": "10x"}
        )
        report("Cache of bases", [row, cold, again], options.folder)


if __name__ == "__main__":
    main()
