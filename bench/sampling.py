"""What two adapters add to sampling, against two PEFT LoRAs; and a grid of strengths, against one run for each pair.

    python bench/sampling.py
    python bench/sampling.py --device cuda      # also the looks of SDXL, SD3-medium and FLUX.1-dev, random weights

"Extra" is over the base's own forward pass, with two adapters (content, style) of one basis. The built-in bases stand
beside the stock pipeline with both files loaded by `load_lora_weights`, one attention layer of real width beside PEFT's
layers as that loads them. A grid of 6 x 6 is `qrlora.grid`; beside it are 36 runs of that pipeline, with `set_adapters`
between.
"""

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import set_weights_and_activate_adapters
from torch import Tensor, nn

from harness import Row, above, arguments, compare, extra, laps, report, seconds
from qrlora.adapter import Adapter, Header, Pair
from qrlora.families import Base, SizeConditioning, open_base
from qrlora.families.library_messages import libraries_silenced
from qrlora.files import save
from qrlora.injection import applied, apply
from qrlora.sampling import generate, grid
from step import FULL_SIZE, Shapes, block, full_size, shapes, twin

sys.path.append(str(Path(__file__).parents[1] / "testing"))
import plain  # noqa: E402  (PEFT's layers, as the tests compare with)

RANK, PROMPT = 32, "a <c> in <s> style"
ROLES = ["content", "style"]
Adapters = list[tuple[Adapter, float]]


def two_adapters(layers: Shapes, base: Base | None = None, rank: int = RANK) -> Adapters:
    """Of one orthonormal basis, with random B that make updates of a trained size; those of a base say so."""
    generator, pairs = torch.Generator().manual_seed(0), []
    widths = sorted({i for _, i in layers.values()})
    Q = {i: torch.linalg.qr(torch.randn(i, min(rank, i), generator=generator)).Q for i in widths}
    of_base = {"family": base.family.name, "part": base.family.component} if base else {}
    for role, strength in zip(ROLES, (0.9, 0.7), strict=True):
        factors = {
            name: Pair(Q[i].T.contiguous(), torch.randn(o, Q[i].shape[1], generator=generator) * 2e-2)
            for name, (o, i) in layers.items()
        }
        pairs.append((Adapter(factors, Header(**of_base, method="qr", rank=rank, role=role)), strength))
    return pairs


def loaded(name: str, adapters: Adapters, device: str, dtype: str = "float32") -> Base:
    """A base whose stock pipeline has loaded the adapters' files as two LoRAs of diffusers'."""
    base = open_base(name, device, dtype)
    base.model.to(base.device)
    pipe: Any = base.pipe
    with tempfile.TemporaryDirectory() as folder, libraries_silenced():
        for (adapter, _), role in zip(adapters, ROLES, strict=True):
            save(adapter, Path(folder) / f"{role}.safetensors")
            pipe.load_lora_weights(folder, weight_name=f"{role}.safetensors", adapter_name=role)
    set_adapters(base, [strength for _, strength in adapters])
    return base


def set_adapters(base: Base, strengths: list[float]) -> None:
    """What the pipeline's own `set_adapters` comes down to; that fails for a UNet whose blocks have lists of layers."""
    set_weights_and_activate_adapters(base.model, ROLES, strengths)


def built_in(name: str, dtype: str, device: str, rounds: int) -> list[Row]:
    """Two images of a built-in base, against diffusers' own loading."""
    base = open_base(name, device, dtype)
    base.model.to(base.device)
    side = base.defaults.resolution // getattr(base.pipe, "vae_scale_factor", 8)
    noisy = torch.randn(2, base.pipe.vae.config.latent_channels, side, side).to(device)
    condition = base.encode_prompt([PROMPT] * 2, SizeConditioning.uncropped(64, 64)).to(device)
    adapters = two_adapters(shapes(base, base.defaults.for_run("content", "qr").targets), base)
    stock = loaded(name, adapters, device, dtype).model
    look = looking(base, noisy, condition)
    return against(f"{name}, 2 pictures, {dtype}", base.model, stock, adapters, look, rounds)


def full_sized(name: str, resolution: int, device: str, rounds: int) -> list[Row]:
    """One image of a base of full size in bfloat16."""
    base, noisy, condition = full_size(name, resolution, device)
    adapters = two_adapters(shapes(base, base.defaults.targets), base)
    look = looking(base, noisy, condition)
    title = f"{name}, {resolution} px, bfloat16"
    return against(title, base.model, stock(base.model, adapters), adapters, look, rounds)


def attention(width: int, tokens: int, dtype: torch.dtype, device: str, rounds: int) -> list[Row]:
    """A norm and one attention layer of diffusers behind it, as in every block; rank 64."""
    model, x, square = block(width, tokens, dtype, device)
    adapters = two_adapters(square, rank=64)
    title = f"attention {width} wide, {tokens} tokens, {str(dtype).removeprefix('torch.')}"
    return against(title, model, stock(model, adapters), adapters, lambda m: m(x), rounds)


def looking(base: Base, noisy: Tensor, condition: Any) -> Callable[[nn.Module], Any]:
    """(model) -> its prediction, as a denoising step asks for it."""
    time = base.noising.sample_time(1, torch.Generator().manual_seed(0)).expand(len(noisy)).to(noisy.device)
    return lambda model: base.family.predict(model, noisy, time, condition)


def stock(model: nn.Module, adapters: Adapters) -> nn.Module:
    """PEFT's layers with factors in the model's own type, which is how diffusers loads LoRAs."""
    found, own = twin(model), next(model.parameters())
    plain.apply(found, adapters, own.dtype)
    return found.to(own.device)


def against(
    title: str,
    model: nn.Module,
    peft: nn.Module,
    adapters: Adapters,
    look: Callable[[nn.Module], Any],
    rounds: int,
) -> list[Row]:
    """Extra seconds of a look at a model, beside the weights and folded into them."""
    beside, folded = twin(model), twin(model)
    for k, (adapter, strength) in enumerate(adapters):
        apply(beside, adapter, f"a{k}", strength)
    ways = {"ours": beside, "two LoRAs": peft, "base": model, "folded": folded}
    with applied(folded, adapters), torch.no_grad():
        took = laps({way: partial(look, of_way) for way, of_way in ways.items()}, rounds)
    whole = {"ours": took.pop("folded"), "base": took["base"]}
    return [
        extra(f"{title}: extra, beside", took, "base", {"two LoRAs": "<=0.5x"}),
        Row(f"{title}: folded", whole, {"base": "<=1.03x"}),
    ]


def grids(name: str, device: str, count: int, steps: int, rounds: int) -> Row:
    """A grid of count x count images."""
    base = open_base(name, device, "float32")
    adapters = two_adapters(shapes(base, base.defaults.for_run("content", "qr").targets), base)
    (content, _), (style, _) = adapters
    stock = loaded(name, adapters, device)
    strengths = [k / (count - 1) for k in range(count)]
    side, guidance = base.defaults.resolution, base.defaults.guidance

    def one_by_one() -> None:
        for of_content in strengths:
            for of_style in strengths:
                set_adapters(stock, [of_content, of_style])
                stock.sample([PROMPT], "", side, steps, guidance, [torch.Generator().manual_seed(0)])

    def ours() -> None:
        grid(base, PROMPT, content, style, strengths, strengths, steps=steps)

    goal = ">=1.5x" if device == "cpu" else ">=3x"
    title = f"{name}: grid of {count} x {count}, {steps} steps"
    row = compare(title, {"ours": ours, "one by one": one_by_one}, rounds, goal)
    bare = min(seconds(lambda: generate(base, PROMPT, count=count**2, steps=steps)) for _ in range(rounds))
    return above(row, bare, "the base alone, as many at once")


def main() -> None:
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rounds, names = (3, ("tiny-sdxl",)) if options.quick else (15, ("tiny-sdxl", "tiny-sd3", "tiny-flux"))
    count, steps, runs = (3, 2, 1) if options.quick else (6, 4, 1)
    measured: list[Row] = []
    for name in names:
        for dtype in ("float32", "bfloat16"):
            measured += built_in(name, dtype, options.device, rounds)
        measured.append(grids(name, options.device, count, steps, runs))
    for width, tokens in ((640, 1024), *([] if options.quick else [(1280, 256), (1280, 1024), (3072, 256)])):
        for dtype in (torch.float32, torch.bfloat16):
            measured += attention(width, tokens, dtype, options.device, rounds)
    if options.device != "cpu" and not options.quick:
        for name, (resolution, _) in FULL_SIZE.items():
            measured += full_sized(name, resolution, options.device, rounds)
    report("Sampling with two adapters", measured, options.folder)


if __name__ == "__main__":
    main()
