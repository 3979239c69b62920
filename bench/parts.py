"""Where a training step's time goes: the frozen base alone, our default method on it, PEFT's LoRA on it.

    python bench/parts.py
    python bench/parts.py --device cuda     # SDXL, SD3-medium and FLUX.1-dev whole instead of the built-in bases

torch's profiler, own time of each operation, the median of five updates; what is left of an update's wall time (median)
is calls: Python, and torch's way to a kernel. On a GPU kernels are counted, and what is left is waiting for the CPU.
Writes parts.png; pico bases (testing/pico.py) are in the table alone.
"""

import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from harness import FLOOR, arguments, laps, machine
from step import FULL_SIZE, built_in_lesson, full_size_lesson, update

sys.path.append(str(Path(__file__).parents[1] / "testing"))
import pico  # noqa: E402

KINDS = {
    "convolutions": ("conv", "implicit"),
    "attention": ("attention", "flash", "fmha"),
    "norms": ("norm",),
    "optimizer": ("adam",),
    "products": ("mm", "nvjet", "cutlass", "cublas"),
}
"""Kind -> what the names of its operations or kernels hold, the first that fits; all others pass over numbers or copy
them."""
PASSES, CALLS = "passes and copies", "calls"


def parts(works: Mapping[str, Callable[[], object]], device: str, rounds: int = 5) -> dict[str, dict[str, float]]:
    """{way: {kind: seconds of an update}}, medians; the ways are timed, then profiled, in turn."""
    found: dict[str, dict[str, float]] = {}
    walls = laps(works, rounds)
    spent: dict[str, list[dict[str, float]]] = {way: [] for way in works}
    for _ in range(rounds):
        for way, work in works.items():
            spent[way].append(_profiled(work, device))
    for way, times_by_kind in spent.items():
        kinds = {kind: statistics.median(one[kind] for one in times_by_kind) for kind in (*KINDS, PASSES)}
        found[way] = {**kinds, CALLS: max(statistics.median(walls[way]) - sum(kinds.values()), 0.0)}
    return found


def _profiled(work: Callable[[], object], device: str) -> dict[str, float]:
    """{kind: seconds} of one call."""
    activities = [ProfilerActivity.CUDA if device != "cpu" else ProfilerActivity.CPU]
    with profile(activities=activities, acc_events=True) as times_by_kind:
        work()
    spent: dict[str, float] = defaultdict(float)
    for event in times_by_kind.key_averages():
        own = event.self_device_time_total if device != "cpu" else event.self_cpu_time_total
        name = event.key.lower()
        if event.key.startswith("aten::") or device != "cpu":
            spent[next((kind for kind, signs in KINDS.items() if any(x in name for x in signs)), PASSES)] += own / 1e6
    return spent


def drawn(bases: Mapping[str, Mapping[str, Mapping[str, float]]], title: str) -> Any:
    """A stacked bar for each base and way."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.45 * sum(map(len, bases.values())) + 1.6), layout="constrained")
    axes = figure.add_subplot()
    labels = [f"{name}, {way}" for name, ways in bases.items() for way in ways]
    left = [0.0] * len(labels)
    for kind in (*KINDS, PASSES, CALLS):
        widths = [1e3 * found[kind] for ways in bases.values() for found in ways.values()]
        axes.barh(labels, widths, left=left, label=kind, color="0.85" if kind == CALLS else None)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("ms of an update")
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def main() -> None:
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    found: dict[str, dict[str, dict[str, float]]] = {}
    full = options.device != "cpu" and not options.quick
    smallest = {f"pico-{family}": str(pico.folder(family)) for family in ("sdxl", "sd3", "flux")}
    for name in FULL_SIZE if full else (*smallest, "tiny-sdxl", "tiny-sd3", "tiny-flux"):
        lesson = full_size_lesson if full else built_in_lesson
        ways, loss = lesson(smallest.get(name, name), options.device)
        works = {way: update(model, learn, loss) for way, (model, learn) in ways.items() if way != FLOOR}
        found[name] = parts(works, options.device, 3 if options.quick else 5)
    print(f"\n### Where a step's time goes\n\n{machine()['summary']}\n")
    kinds = [*KINDS, PASSES, CALLS]
    print(f"| ms of an update | {' | '.join(kinds)} |", f"|---{'|---:' * len(kinds)}|", sep="\n")
    for name, ways in found.items():
        for way, times_by_kind in ways.items():
            print(f"| {name}, {way} | {' | '.join(f'{1e3 * times_by_kind[kind]:.1f}' for kind in kinds)} |")
    options.folder.mkdir(parents=True, exist_ok=True)
    drawn({name: ways for name, ways in found.items() if name not in smallest}, str(machine()["summary"])).savefig(
        options.folder / "parts.png", dpi=120
    )
    print(options.folder / "parts.png")


if __name__ == "__main__":
    main()
