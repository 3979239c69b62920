"""The memory table of docs/hardware.md: what training on each public base needs, counted from shapes, none of it run.

    python bench/memory.py                   # every base, 512 and 1024 px: some minutes
    python bench/memory.py sd15 krea2-raw    # these alone

A base that has another one's shapes (Pony, klein beside its base) has no row of its own.
"""

import sys
from collections.abc import Iterator

from harness import arguments
from qrlora.estimate import Report, estimate
from qrlora.families.public_configs import PUBLIC

SIZES = (512, 1024)
HEAD = """| base | px | file, full / compact | bfloat16 | recomputed | nf4 | recomputed | nf4, an update |
|---|---|---|---|---|---|---|---|"""


def names() -> list[str]:
    """The short names of public bases, the first one of those that have the same shapes."""
    found: dict[str, str] = {}
    for name, base in PUBLIC.items():
        found.setdefault(repr((base.model_config, base.text_encoders, base.vae)), name)
    return [*found.values()]


def row(name: str, side: int) -> str:
    """A row of the table: MB of the file at rank 64, GB of the need."""
    report = estimate(name, how="count", against="", resolution=side, device="cpu")
    file = " / ".join(f"{report.files[x] / 1e6:.1f} MB" for x in ("full", "compact"))
    needs = (gigabytes(report, weights, kept) for weights in ("bfloat16", "nf4") for kept in ("kept", "recomputed"))
    update = report.training("nf4", "recomputed", "qr") / 1e9
    return f"| `{name}` | {side} | {file} | {' | '.join(needs)} | {update:.1f} |"


def gigabytes(report: Report, weights: str, activations: str) -> str:
    return f"{report.need(weights, activations, 'qr') / 1e9:.1f}"


def rows(chosen: list[str]) -> Iterator[str]:
    for name in chosen:
        yield from (row(name, side) for side in SIZES)


if __name__ == "__main__":
    parser = arguments(__doc__)  # nothing is run on a device, and nothing is measured
    parser.add_argument("names", nargs="*", help="short names, as qrlora bases lists them; all, if none is given")
    print(HEAD)
    for line in rows(parser.parse_args().names or names()):
        print(line)
        sys.stdout.flush()
