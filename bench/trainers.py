"""Inside other trainers: seconds until 280 layers of SDXL have their directions, and what a training step costs.

    python bench/trainers.py                                       # PEFT's layers, rank 64, on the CPU or --device
    python bench/trainers.py --sd-scripts FOLDER --python PYTHON   # the real trainers, at pico size on CPU
                             --musubi-tuner FOLDER  --diffusers FOLDER  --ai-toolkit FOLDER

FOLDER is a checkout, PYTHON the interpreter of its environment, by default this one; --ways "flux" "sdxl, bf16" runs
some. The tables are those of bench/inside: trained parameters, first loss, memory kept for the backward pass, CPU
seconds a step, the error of A against a float64 SVD and whether the base moved, ours against the trainer's own LoRA.
"""

import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

import qrlora
from basis import weight
from harness import Row, arguments, compare, report

SCRIPTS = {
    "sd_scripts": "sd_scripts",
    "musubi_tuner": "musubi",
    "diffusers": "diffusers_scripts",
    "ai_toolkit": "ai_toolkit",
}
"""Trainer -> its script in bench/inside."""
LAYERS = {640: 40, 1280: 240}
"""{outputs and inputs: layers} of SDXL's self-attention."""
RANK = 64
GOALS = (15.0, 1.0)
"""Seconds of a first and a second start on two quiet CPU cores."""


def model(layers: dict[int, int], device: str) -> nn.Module:
    """Linear layers of given sizes, in bfloat16, with spectra as trained weights have."""
    seeds = {size: weight((size, size), "trained", device) for size in layers}
    whole = nn.ModuleDict()
    for size, count in layers.items():
        for k in range(count):  # turned by k: another weight with the same spectrum
            layer = nn.Linear(size, size, bias=False, device=device, dtype=torch.bfloat16)
            layer.weight.data.copy_(seeds[size].roll((k, 7 * k), (0, 1)))
            whole[f"s{size}_{k}"] = layer
    return whole


def starts(layers: dict[int, int], device: str) -> tuple[list[tuple[float, float]], int, int]:
    """Seconds of `freeze` with an empty cache and again, by the clock and of all cores together; trained parameters
    then, and before."""
    from peft import LoraConfig, get_peft_model

    took, numbers = [], (0, 0)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["QRLORA_CACHE"] = cache
        for _ in range(2):
            names = [f"s{size}_{k}" for size, count in layers.items() for k in range(count)]
            adapted = get_peft_model(model(layers, device), LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names))
            before = sum(x.numel() for x in adapted.parameters() if x.requires_grad)
            begun, busy = time.perf_counter(), time.process_time()
            qrlora.freeze(adapted)
            took.append((time.perf_counter() - begun, time.process_time() - busy))
            numbers = sum(x.numel() for x in adapted.parameters() if x.requires_grad), before
    return took, *numbers


def steps(size: int, device: str, rounds: int) -> list[Row]:
    """One layer beside PEFT's own LoRA: seconds of the CPU for a forward and backward pass (on a GPU by the clock), and
    bytes that autograd keeps."""
    from peft import LoraConfig, get_peft_model

    def of(freeze: bool) -> nn.Module:
        adapted = get_peft_model(
            nn.Sequential(nn.Linear(size, size, bias=False, device=device)), LoraConfig(r=RANK, target_modules=["0"])
        )
        if freeze:
            qrlora.freeze(adapted)
        return adapted

    x = torch.randn(4, 1024, size, device=device, requires_grad=True)
    both = {"ours": of(True), "PEFT's LoRA": of(False)}

    def step(layer: nn.Module) -> float:
        clock = time.perf_counter if x.is_cuda else time.process_time
        begun = clock()
        layer(x * 1.0).square().mean().backward()
        if x.is_cuda:
            torch.cuda.synchronize()
        return clock() - begun

    def kept(layer: nn.Module) -> float:
        seen: dict[int, int] = {}

        def keep(saved: torch.Tensor) -> torch.Tensor:
            if not isinstance(saved if saved._base is None else saved._base, nn.Parameter):
                seen[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
            return saved

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
            layer(x * 1.0)
        return sum(seen.values()) / 1e6

    ways = {way: (lambda layer=layer: step(layer)) for way, layer in both.items()}
    held = {way: (lambda layer=layer: kept(layer)) for way, layer in both.items()}
    named = f"one layer of {size}, 4096 tokens"
    return [
        compare(f"{named}: a step", ways, rounds, {"PEFT's LoRA": "1x"}, measure=lambda work: work()),
        compare(
            f"{named}: kept for backward",
            held,
            rounds=1,
            goal={"PEFT's LoRA": "1x"},
            measure=lambda work: work(),
            unit="MB",
        ),
    ]


def inside(trainer: str, folder: Path, python: str, ways: Sequence[str]) -> int:
    """Run a real trainer's table. Returns its exit code."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parent / "src"), os.environ.get("PYTHONPATH", "")])
    print(f"\n### {trainer.replace('_', '-')}\n", flush=True)
    command = [python, str(here / "inside" / f"{SCRIPTS[trainer]}.py"), str(folder), *ways]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, check=False).returncode


def main() -> None:
    parser = arguments(__doc__)
    for trainer in SCRIPTS:
        parser.add_argument(f"--{trainer.replace('_', '-')}", type=Path, help="a checkout, to run the real one")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the trainer's environment")
    parser.add_argument("--ways", nargs="*", default=[], help="some rows of its table")
    options = parser.parse_args()
    asked = {trainer: getattr(options, trainer) for trainer in SCRIPTS if getattr(options, trainer)}
    if asked:
        raise SystemExit(
            max(inside(trainer, folder, options.python, options.ways) for trainer, folder in asked.items())
        )
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    layers = {512: 4} if options.quick else LAYERS
    took, numbers, before = starts(layers, options.device)
    rows = [Row("trained parameters", {"ours": [numbers], "PEFT's LoRA": [before]}, {"PEFT's LoRA": "2x"}, unit="")]
    for name, goal, (clock, busy) in zip(("first", "second"), GOALS, took, strict=True):
        what = f"directions of {sum(layers.values())} layers: {name} start"
        rows.append(Row(what, {"ours": [clock], "goal": [goal]}, {"goal": "1x"}))
        rows.append(Row(f"{what}, of all cores together", {"ours": [busy], "goal": [2 * goal]}, {"goal": "1x"}))
    size, rounds = (256, 3) if options.quick else (1280, 15)
    report("Inside other trainers", [*rows, *steps(size, options.device, rounds)], options.folder)


if __name__ == "__main__":
    main()
