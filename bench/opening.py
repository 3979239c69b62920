"""Memory that opening a base takes at worst, beyond the libraries', beside its trainable component's weights; Linux.

    python bench/opening.py

An SD3 transformer of real width, the other parts tiny, opened as int8 from one file and from a folder,
each in a fresh process. The goal: a quantised base needs no second copy, so less than the weights in bfloat16. Memory
is counted by the system, with the holes between the weights that glibc keeps; by its own switch it keeps none.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from harness import Row, arguments, report

sys.path.append(str(Path(__file__).parents[1] / "testing"))
import checkpoint  # noqa: E402
import pico  # noqa: E402

MEASURE = """
import sys
from qrlora.families import open_base
place, small = sys.argv[1:]
open_base(small, "cpu", "bfloat16", "int8")  # loads all libraries
def memory(name):
    return next(int(line.split()[1]) / 1e3 for line in open("/proc/self/status") if line.startswith(name))
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = memory("VmRSS")
base = open_base(place, "cpu", "bfloat16", "int8")
print(memory("VmHWM") - before)
"""
NO_HOLES = {"MALLOC_MMAP_THRESHOLD_": "1000000"}


def written(folder: Path, blocks: int) -> float:
    """A base in `folder`/base and as `folder`/model.safetensors; the MB of its transformer in bfloat16."""
    from diffusers import SD3Transformer2DModel

    small = pico.folder("sd3")
    for name in ("base", "model"):
        shutil.copytree(small, folder / name, ignore=shutil.ignore_patterns("diffusion_pytorch_model.safetensors"))
        shutil.copytree(small / "vae", folder / name / "vae", dirs_exist_ok=True)
    config = json.loads((small / "transformer" / "config.json").read_text())
    config |= {
        "num_attention_heads": 24,
        "attention_head_dim": 64,
        "caption_projection_dim": 1536,
        "num_layers": blocks,
    }
    model = SD3Transformer2DModel.from_config(config).to(torch.bfloat16)
    model.save_pretrained(folder / "base" / "transformer")
    shutil.copy(folder / "base" / "transformer" / "config.json", folder / "model" / "transformer")
    checkpoint.write(checkpoint.transformer(model.state_dict(), "sd3"), folder / "model.safetensors")
    return sum(x.numel() for x in model.parameters()) * 2 / 1e6


def peak(place: Path, environment: dict[str, str]) -> float:
    command = [sys.executable, "-c", MEASURE, str(place), str(pico.folder("sd3"))]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **environment})
    return float(done.stdout.split()[-1])


def main() -> None:
    options = arguments(__doc__).parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        size = written(Path(folder), 2 if options.quick else 6)
        for what, place in (("one file", "model.safetensors"), ("a folder", "base")):
            for environment in (NO_HOLES, {}):
                name = f"{what}, int8{', no holes' if environment else ''}"
                measured = {"ours": [peak(Path(folder) / place, environment)], "weights in bfloat16": [size]}
                rows.append(Row(name, measured, {"weights in bfloat16": "<=1x"}, unit="MB"))
    report("Opening a base", rows, options.folder)


if __name__ == "__main__":
    main()
