"""Time to merge and to inspect two SDXL adapters (560 layers, rank 64), and whether the merge is the true sum.

    python bench/merge.py

Beside `qrlora merge`: PEFT's add_weighted_adapter on the same two files, in its two modes that keep or stack the rank.
"Error" is |merged - (c + s)| / |c + s| over all layers, c + s being the sum of the two updates; 1 means that the merge
is off by as much as the whole. Each command is run five times in a fresh process; the median counts. Memory is the most
that a merge's process held of its own (mapped files, which the system can drop, aside) beyond `import torch`.

Last, the 280 layers of self-attention against PEFT's one mode that keeps the rank and the sum, "svd". It decomposes
every layer's dense update, so one layer of each width is timed, times how many there are: extrapolated.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from harness import Row, above, arguments, laps, report, seconds
from qrlora.adapter import Adapter, Header, Pair
from qrlora.files import load, save
from qrlora.merging import merge

RANK = 64


def sdxl_layers() -> Iterator[tuple[str, tuple[int, int]]]:
    """(name, (outputs, inputs)) of the 560 attention projections of SDXL 1.0's UNet."""
    blocks = [("down_blocks.1", 640, 2, 2), ("down_blocks.2", 1280, 2, 10), ("mid_block", 1280, 1, 10)]
    blocks += [("up_blocks.0", 1280, 3, 10), ("up_blocks.1", 640, 3, 2)]
    for block, width, attentions, depth in blocks:
        for a in range(attentions):
            for d in range(depth):
                for attention, context in (("attn1", width), ("attn2", 2048)):
                    for name in ("to_q", "to_k", "to_v", "to_out.0"):
                        inputs = context if name in ("to_k", "to_v") else width
                        yield f"{block}.attentions.{a}.transformer_blocks.{d}.{attention}.{name}", (width, inputs)


def write_pair(folder: Path) -> list[Path]:
    """Two adapters of method `qr` on one random basis, full size."""
    generator = torch.Generator().manual_seed(0)
    Q = {i: torch.linalg.qr(torch.randn(i, RANK, generator=generator)).Q for i in (640, 1280, 2048)}
    paths = []
    for role, trigger in (("content", "<c>"), ("style", "<s>")):
        header = Header(family="sdxl", component="unet", method="qr", rank=RANK, targets="attention", basis="0" * 64)
        header = Header(**{**header.__dict__, "role": role, "trigger": trigger, "base": "random"})
        layers = {
            name: Pair(Q[i].T.contiguous(), torch.randn(o, RANK, generator=generator) * 0.01)
            for name, (o, i) in sdxl_layers()
        }
        paths.append(folder / f"{role}.safetensors")
        save(Adapter(layers, header), paths[-1])
    return paths


def error(true: tuple[Adapter, Adapter], merged: Callable[[str], torch.Tensor], layers: list[str]) -> float:
    """|merged - sum| / |sum| over some layers; merged(layer) is an update (o, i)."""
    off = total = 0.0
    for layer in layers:
        wanted = sum(adapter.dense(layer) for adapter in true)
        off += float((merged(layer) - wanted).square().sum())
        total += float(wanted.square().sum())
    return (off / total) ** 0.5


def own_memory(command: list[str]) -> int:
    """Most bytes that a process held of its own, looked at every millisecond (Linux)."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        most = 0
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            held = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")]
            most = max([most, *(1024 * int(kilobytes) for kilobytes in held)])
            time.sleep(0.001)
    return most


class Holder(torch.nn.Module):
    """The adapted layers alone, weights of one number each: PEFT needs modules to hang its factors on, no more."""

    def __init__(self, shapes: dict[str, tuple[int, int]]) -> None:
        super().__init__()
        for name, (o, i) in shapes.items():
            *path, last = name.split(".")
            module: torch.nn.Module = self
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, torch.nn.Module())
                module = getattr(module, part)
            linear = torch.nn.Linear(i, o, bias=False, device="meta")
            linear.weight = torch.nn.Parameter(torch.zeros(1, 1).expand(o, i), requires_grad=False)
            module.add_module(last, linear)


def peft_merge(mode: str, adapters: tuple[Adapter, Adapter]) -> tuple[float, Callable[[str], torch.Tensor]]:
    """Seconds of add_weighted_adapter alone, without loading files, and the update that it gives each layer."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    model = get_peft_model(Holder(adapters[0].shapes), config, adapter_name="c", low_cpu_mem_usage=True)
    model.add_adapter("s", config, low_cpu_mem_usage=True)
    base = model.base_model.model
    for name, adapter in zip(("c", "s"), adapters, strict=True):
        for layer, pair in adapter.layers.items():
            module = base.get_submodule(layer)
            module.lora_A[name].weight = torch.nn.Parameter(pair.A.clone(), requires_grad=False)
            module.lora_B[name].weight = torch.nn.Parameter(pair.B.clone(), requires_grad=False)
    started = time.perf_counter()
    model.add_weighted_adapter(["c", "s"], [1.0, 1.0], "merged", combination_type=mode)
    took = time.perf_counter() - started

    def update(layer: str) -> torch.Tensor:
        module = base.get_submodule(layer)
        return module.scaling["merged"] * module.lora_B["merged"].weight @ module.lora_A["merged"].weight

    return took, update


def against_svd(adapters: tuple[Adapter, Adapter], repeats: int) -> Row:
    """Merging alone, 280 layers: ours, and PEFT's "svd" extrapolated from one layer of each width."""
    content, style = (adapter.select(lambda layer: ".attn1." in layer) for adapter in adapters)
    layers_of: dict[tuple[int, int], list[str]] = {}
    for layer, shape in content.shapes.items():
        layers_of.setdefault(shape, []).append(layer)

    def svd() -> float:
        total = 0.0
        for same in layers_of.values():
            one = (content.select(same[:1]), style.select(same[:1]))
            total += peft_merge("svd", one)[0] * len(same)
        return total

    def ours() -> float:
        return seconds(lambda: merge([content, style], [1.0, 1.0]))

    took = laps({"ours": ours, "peft svd, extrapolated": svd}, repeats, warm=False, measure=lambda timed: timed())
    row = Row(f"merge alone, {len(content.layers)} layers, rank {RANK}", took, {"peft svd, extrapolated": ">=50x"})
    first, second = (torch.cat([pair.B.flatten() for pair in x.layers.values()]) for x in (content, style))
    return above(row, min(seconds(lambda: first + second) for _ in range(3)), "two B read, their sum written")


def from_the_shell(paths: list[Path], folder: Path, repeats: int) -> list[Row]:
    """Whole processes: their seconds, the error of the sum beside that of PEFT's other modes, the merge's memory."""
    output, qrlora = folder / "merged.safetensors", [sys.executable, "-m", "qrlora"]
    words = list(map(str, paths))
    commands = {
        "qrlora merge A B": [*qrlora, "merge", *words, "-o", str(output)],
        "qrlora inspect A": [*qrlora, "inspect", words[0]],
        "qrlora inspect A B": [*qrlora, "inspect", *words, "--plot", str(folder / "similarity.png")],
    }
    runs = {name: partial(subprocess.run, x, check=True, stdout=subprocess.DEVNULL) for name, x in commands.items()}
    took, limit = laps(runs, repeats), {"3 s": "<=1x"}
    bare = [sys.executable, "-c", "import torch"]
    least = min(seconds(partial(subprocess.run, bare, check=True)) for _ in range(3))
    writes = {"qrlora merge A B": seconds(partial(shutil.copyfile, output, folder / "copy"))}
    rows = [
        above(Row(name, {"ours": took[name], "3 s": [3.0] * repeats}, limit), least + writes.get(name, 0.0), what)
        for name, what in zip(commands, ("import torch, output copied", "import torch", "import torch"), strict=True)
    ]
    torch_alone = own_memory(bare)
    held = [own_memory(commands["qrlora merge A B"]) - torch_alone for _ in range(repeats)]
    sizes = {"ours": [x / 1e6 for x in held], "the output": [output.stat().st_size / 1e6] * repeats}
    memory = Row("memory of qrlora merge", sizes, {"the output": "<=1.5x"}, unit="MB")
    rows.append(above(memory, output.stat().st_size / 2e6, "the summed B"))
    true, checked = (load(paths[0]), load(paths[1])), [name for name, _ in sdxl_layers()][::20]
    for mode, rank in (("linear", RANK), ("cat", 2 * RANK)):
        seconds_, update = peft_merge(mode, true)
        errors = {"ours": [error(true, load(output).dense, checked)], f"peft {mode}": [error(true, update, checked)]}
        rows.append(Row(f"relative error of the sum; peft {mode} has rank {rank}, {seconds_:.1f} s", errors, unit=""))
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    repeats = 1 if options.quick else options.repeats
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_pair(Path(folder))
        print(f"two adapters, 560 layers, rank {RANK}, {paths[0].stat().st_size / 1e6:.0f} MB each", flush=True)
        rows = from_the_shell(paths, Path(folder), repeats)
        rows.append(against_svd((load(paths[0]), load(paths[1])), min(repeats, 3)))
    report("Merging", rows, options.folder)


if __name__ == "__main__":
    main()
