"""Squared norm that merging loses where two adapters' bases were computed on processors of different kinds.

    python bench/processors.py

Each kind computes the directions of the same weights in a process of its own: products in bfloat16 where a processor is
fast at them (AVX-512 BF16, AMX) or float32 alone, with the kernels of torch, oneDNN and MKL held to AVX2 or to SSE
(`HELD`). One adapter stands in one kind's basis, one in another's, both with random dR, which weigh all directions
alike; `merge` writes the second in the basis of the first and says which fraction of its squared norm that kept. It
refuses to lose more than 1 %. "Worst" is what an adapter would lose that was trained in the one direction alone that
the two spans share least. Shapes and spectra are those of `bench/basis.py`; the weights of the built-in bases are so
small that all eigenvectors are taken, in float64.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import unittest.mock
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from basis import RANK, weight
from harness import Row, arguments, report
from qrlora.adapter import Adapter, Header, Pair
from qrlora.basis import Basis, compute_basis
from qrlora.families import open_base
from qrlora.linalg import principal_angles
from qrlora.merging import merge
from qrlora.merging.sum_and_stack import MIN_KEPT_FRACTION

HELD = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
KINDS = {
    "bfloat16": (True, ()),
    "float32, AVX2": (False, ("avx2", "AVX2", "AVX2")),
    "float32, SSE": (False, ("default", "SSE41", "SSE4_2")),
}
"""{kind of processor: (whether its products in bfloat16 are fast, what torch, oneDNN and MKL are held to)}."""


def weights(quick: bool) -> Iterator[tuple[str, list[tuple[str, Tensor]]]]:
    """(what, its layers)."""
    for shape in [(640, 640)] if quick else [(1280, 1280), (3072, 3072)]:
        for kind in ("trained", "Gaussian"):
            yield f"{shape[0]}x{shape[1]}, {kind}", [("layer", weight(shape, kind, "cpu"))]
    for name in ("tiny-sdxl",) if quick else ("tiny-sdxl", "tiny-sd3", "tiny-flux"):
        base = open_base(name, "cpu")
        layers = [(layer, W.float()) for layer, W in base.weights(base.defaults.targets or "")]
        yield f"{name}, {len(layers)} layers", [(layer, W) for layer, W in layers if min(W.shape) >= RANK]


def computed(kind: str, quick: bool) -> dict[str, dict[str, Tensor]]:
    """{what: {layer: Q}}, as that kind of processor finds them."""
    fast, held = KINDS[kind]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bases.pt"
        options = ["--fast-bfloat16"] * fast + ["--quick"] * quick + ["--write", str(path)]
        environment = {**os.environ, **dict(zip(HELD, held, strict=False))}
        subprocess.run([sys.executable, __file__, *options], check=True, env=environment)
        return torch.load(path)


def write(fast: bool, quick: bool, path: Path) -> None:
    """The bases, in a process that is that kind of processor."""
    with unittest.mock.patch("qrlora.lanczos.has_fast_bfloat16", return_value=fast):
        torch.save({what: dict(compute_basis(layers, RANK).Q) for what, layers in weights(quick)}, path)


def random_adapter(Q: dict[str, Tensor], seed: int) -> Adapter:
    """An adapter of method `qr` in that basis."""
    generator = torch.Generator().manual_seed(seed)
    header = Header(family="sdxl", component="unet", method="qr", rank=RANK, basis=Basis(Q, RANK, "input").digest)
    return Adapter(
        {x: Pair(q.T.contiguous(), torch.randn(len(q), RANK, generator=generator)) for x, q in Q.items()}, header
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--fast-bfloat16", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.write:
        return write(options.fast_bfloat16, options.quick, options.write)
    found, rows = {kind: computed(kind, options.quick) for kind in KINDS}, []
    for here, there in combinations(KINDS, 2):
        for what, Q in found[here].items():
            other = found[there][what]
            merged = merge([random_adapter(Q, 0), random_adapter(other, 1)], [1.0, 1.0])
            lost = max(1 - min(merged.header.config["kept_energy"]), 1e-9)  # 1e-9 stands for none: a ratio needs some
            worst = max(1 - float(principal_angles(q, other[layer]).min()) ** 2 for layer, q in Q.items())
            measured = {"lost": [lost], "refused": [1 - MIN_KEPT_FRACTION]}
            rows.append(Row(f"{here} / {there}: {what}", measured, {"refused": "10x"}, {"worst": f"{worst:.0e}"}, ""))
    report("Processors", rows, options.folder)


if __name__ == "__main__":
    main()
