"""What two adapters add to sampling, against two PEFT LoRAs; and a grid of strengths, against one run for each pair.

    python bench/sampling.py
    python bench/sampling.py --device cuda      # also the looks of SDXL, SD3-medium and FLUX.1-dev, random weights

"Extra" is over the base's own forward pass, with the built-in bases and adapters (content, style) of one basis. A grid
of 6 x 6 is `qrlora.grid`; beside it are 36 runs of the stock pipeline with two PEFT LoRAs, their strengths set between
runs as `set_adapters` does.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness import Row, arguments, compare, report, seconds
from qrlora.adapter import Adapter, Header, Pair
from qrlora.attach import attach, worn
from qrlora.families import Base, Framing, open_base
from qrlora.sampling import grid
from step import FULL_SIZE, full_size, shapes, twin

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import plain  # noqa: E402  (PEFT's layers, as the tests compare with)

RANK, PROMPT = 32, "a <c> in <s> style"


def two_adapters(base: Base, targets: str) -> list[tuple[Adapter, float]]:
    """Of one orthonormal basis, with random B."""
    generator, pairs = torch.Generator().manual_seed(0), []
    found = shapes(base, targets)
    Q = {
        i: torch.linalg.qr(torch.randn(i, min(RANK, i), generator=generator)).Q for i in {i for _, i in found.values()}
    }
    for role, strength in (("content", 0.9), ("style", 0.7)):
        layers = {
            name: Pair(Q[i].T.contiguous(), torch.randn(o, Q[i].shape[1], generator=generator) * 1e-3)
            for name, (o, i) in found.items()
        }
        told = {"family": base.family.name, "part": base.family.part, "method": "qr", "rank": RANK, "role": role}
        pairs.append((Adapter(layers, Header(**told)), strength))
    return pairs


def built_in(name: str, dtype: str, device: str, rounds: int) -> list[Row]:
    """Two pictures of a built-in base."""
    base = open_base(name, device, dtype)
    side = base.defaults.resolution // getattr(base.pipe, "vae_scale_factor", 8)
    noisy = torch.randn(2, base.pipe.vae.config.latent_channels, side, side).to(device)
    condition = base.encode_prompt([PROMPT] * 2, Framing.plain(64, 64)).to(device)
    targets = base.defaults.for_run("content", "qr").targets
    return looks(f"{name}, 2 pictures, {dtype}", base, targets, noisy, condition, dtype == "float32", rounds)


def looks(title: str, base: Base, targets: str, noisy: Tensor, condition: Any, folded: bool, rounds: int) -> list[Row]:
    """Extra seconds of a forward pass, beside the weights and, in float32, folded into them."""
    adapters = two_adapters(base, targets)
    time = base.noising.sample_time(1, torch.Generator().manual_seed(0)).expand(len(noisy)).to(noisy.device)
    ways = ("ours, beside", *(["ours, folded"] if folded else []), "peft")
    models: dict[str, nn.Module] = {way: twin(base.model) for way in ways}
    for k, (adapter, strength) in enumerate(adapters):
        attach(models["ours, beside"], adapter, f"a{k}", strength)
    plain.attach(models["peft"], adapters)
    models["peft"].to(noisy.device)

    def look(model: nn.Module) -> Callable[[], object]:
        return lambda: base.family.predict(model, noisy, time, condition)

    with ExitStack() as stack, torch.no_grad():
        if folded:
            stack.enter_context(worn(models["ours, folded"], adapters))
        works = {way: look(model) for way, model in {"base": base.model, **models}.items()}
        laps = {way: [] for way in works}
        for k in range(rounds + 1):
            for way, work in works.items():
                laps[way] += [seconds(work)][:k]  # the first round warms up
    median = sorted(laps["base"])[rounds // 2]

    def extra(way: str) -> Sequence[float]:
        return [a - b for a, b in zip(laps[way], laps["base"], strict=True)]

    note = {"base alone": f"{median * 1e3:.3g} ms"}
    rows = [Row(f"{title}: extra, beside", {"ours": extra("ours, beside"), "peft": extra("peft")},
                {"peft": "<=0.5x"}, note)]  # fmt: skip
    if folded:
        rows.append(Row(f"{title}: folded", {"ours": laps["ours, folded"], "base": laps["base"]}, {"base": "<=1.03x"}))
    return rows


def grids(name: str, device: str, count: int, steps: int, rounds: int) -> Row:
    """A grid of count x count pictures."""
    base, stock = open_base(name, device), open_base(name, device)
    (content, _), (style, _) = adapters = two_adapters(base, base.defaults.for_run("content", "qr").targets)
    strengths = [k / (count - 1) for k in range(count)]
    plain.attach(stock.model, adapters)
    stock.model.to(device)

    def one_by_one() -> None:
        for of_content in strengths:
            for of_style in strengths:
                plain.set_strengths(stock.model, [of_content, of_style])
                side, guidance = base.defaults.resolution, base.defaults.guidance
                stock.sample([PROMPT], "", side, steps, guidance, [torch.Generator().manual_seed(0)])

    def ours() -> None:
        grid(base, PROMPT, content, style, strengths, strengths, steps=steps)

    goal = ">=1.5x" if device == "cpu" else ">=3x"
    return compare(f"{name}: grid of {count} x {count}, {steps} steps", {"ours": ours, "one by one": one_by_one},
                   rounds, goal)  # fmt: skip


def main() -> None:
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rounds, names = (3, ("tiny-sdxl",)) if options.quick else (15, ("tiny-sdxl", "tiny-sd3", "tiny-flux"))
    count, steps, runs = (3, 2, 1) if options.quick else (6, 4, 2)
    measured: list[Row] = []
    for name in names:
        for dtype in ("float32", "bfloat16"):
            measured += built_in(name, dtype, options.device, rounds)
        measured.append(grids(name, options.device, count, steps, runs))
    if options.device != "cpu" and not options.quick:
        for name, (resolution, _) in FULL_SIZE.items():
            base, noisy, condition = full_size(name, resolution, options.device)
            title = f"{name}, {resolution} px, bfloat16"
            measured += looks(title, base, base.defaults.targets, noisy, condition, False, rounds)
    report("Sampling with two adapters", measured, options.folder)


if __name__ == "__main__":
    main()
