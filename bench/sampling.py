"""What two adapters add to sampling, against two PEFT LoRAs; and a grid of strengths, against one run for each pair.

    python bench/sampling.py

"Extra" is over the base's own forward pass, with the built-in bases and adapters (content, style) of one basis. A grid
of 6 x 6 is `qrlora.grid`; beside it are 36 runs of the stock pipeline with two PEFT LoRAs, their strengths set between
runs as `set_adapters` does.
"""

import copy
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from harness import Row, arguments, compare, report, seconds
from qrlora.adapter import Adapter, Header, Pair
from qrlora.attach import attach, worn
from qrlora.families import Base, Framing, open_base
from qrlora.linalg import leading_subspace
from qrlora.sampling import grid

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import plain  # noqa: E402  (PEFT's layers, as the tests compare with)

RANK, PROMPT = 32, "a <c> in <s> style"


def two_adapters(base: Base) -> list[tuple[Adapter, float]]:
    """Of one basis, as two trainings on one base give them, with random B."""
    weights = dict(base.weights(base.defaults.for_run("content", "qr").targets))
    Q = {name: leading_subspace(w, min(RANK, *w.shape), "input") for name, w in weights.items()}
    generator, pairs = torch.Generator().manual_seed(0), []
    for role, strength in (("content", 0.9), ("style", 0.7)):
        layers = {
            name: Pair(Q[name].T.contiguous(), torch.randn(len(w), Q[name].shape[1], generator=generator) * 1e-3)
            for name, w in weights.items()
        }
        told = {"family": base.family.name, "part": base.family.part, "method": "qr", "rank": RANK, "role": role}
        pairs.append((Adapter(layers, Header(**told)), strength))
    return pairs


def looks(name: str, pictures: int, dtype: str, rounds: int) -> list[Row]:
    """Extra seconds of a forward pass."""
    base = open_base(name, "cpu", dtype)
    adapters, generator = two_adapters(base), torch.Generator().manual_seed(0)
    side = base.defaults.resolution // getattr(base.pipe, "vae_scale_factor", 8)
    noisy = torch.randn(pictures, base.pipe.vae.config.latent_channels, side, side, generator=generator)
    condition = base.encode_prompt([PROMPT] * pictures, Framing.plain(64, 64))
    time = base.noising.sample_time(1, generator).expand(pictures)
    models: dict[str, nn.Module] = {way: copy.deepcopy(base.model) for way in ("ours, beside", "ours, folded", "peft")}
    for k, (adapter, strength) in enumerate(adapters):
        attach(models["ours, beside"], adapter, f"a{k}", strength)
    plain.attach(models["peft"], adapters)

    def look(model: nn.Module) -> Callable[[], object]:
        return lambda: base.family.predict(model, noisy, time, condition)

    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(worn(models["ours, folded"], adapters))
        ways = {way: look(model) for way, model in {"base": base.model, **models}.items()}
        laps = {way: [] for way in ways}
        for k in range(rounds + 1):
            for way, work in ways.items():
                laps[way] += [seconds(work)][:k]  # the first round warms up
    median = sorted(laps["base"])[rounds // 2]

    def extra(way: str) -> Sequence[float]:
        return [a - b for a, b in zip(laps[way], laps["base"], strict=True)]

    title, note = f"{name}, {pictures} pictures, {dtype}", {"base alone": f"{median * 1e3:.3g} ms"}
    rows = [Row(f"{title}: extra, beside", {"ours": extra("ours, beside"), "peft": extra("peft")},
                {"peft": "<=0.5x"}, note)]  # fmt: skip
    if dtype == "float32":  # others are not folded
        rows.append(Row(f"{title}: folded", {"ours": laps["ours, folded"], "base": laps["base"]}, {"base": "<=1.03x"}))
    return rows


def grids(name: str, count: int, steps: int, rounds: int) -> Row:
    """A grid of count x count pictures."""
    base, stock = open_base(name, "cpu"), open_base(name, "cpu")
    (content, _), (style, _) = adapters = two_adapters(base)
    strengths = [k / (count - 1) for k in range(count)]
    plain.attach(stock.model, adapters)

    def one_by_one() -> None:
        for of_content in strengths:
            for of_style in strengths:
                plain.set_strengths(stock.model, [of_content, of_style])
                side, guidance = base.defaults.resolution, base.defaults.guidance
                stock.sample([PROMPT], "", side, steps, guidance, [torch.Generator().manual_seed(0)])

    def ours() -> None:
        grid(base, PROMPT, content, style, strengths, strengths, steps=steps)

    return compare(f"{name}: grid of {count} x {count}, {steps} steps", {"ours": ours, "one by one": one_by_one},
                   rounds, ">=1.5x")  # fmt: skip


def main() -> None:
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    rounds, names = (3, ("tiny-sdxl",)) if options.quick else (15, ("tiny-sdxl", "tiny-sd3", "tiny-flux"))
    measured: list[Row] = []
    for name in names:
        for dtype in ("float32", "bfloat16"):
            measured += looks(name, 2, dtype, rounds)
        measured.append(grids(name, 3 if options.quick else 6, 2 if options.quick else 4, 1 if options.quick else 2))
    report("Sampling with two adapters", measured, options.folder)


if __name__ == "__main__":
    main()
