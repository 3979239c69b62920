"""Time and memory that an adapter adds to a training step, against PEFT's LoRA of the same rank on the same layers.

    python bench/step.py

"Extra" is over the frozen base's own forward and backward pass (its input asks for a gradient, as it does in a step).
Memory is the most bytes alive at once in an update beyond the weights: activations, gradients, Adam's two moments.
The three built-in bases with their own settings; then one attention layer at the widths of SDXL and FLUX.1.
"""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness import Row, arguments, report, seconds
from qrlora.attach import begin
from qrlora.families import Framing, open_base
from qrlora.linalg import leading_subspace
from qrlora.methods import METHODS
from qrlora.rehearsal.live import Live
from qrlora.training import denoising_loss

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import plain  # noqa: E402  (PEFT's layers, as the tests compare with)

GOAL = {"peft lora": "<=0.5x"}


def starts(weights: dict[str, Tensor], method: str, rank: int) -> dict[str, Any]:
    row, generator = METHODS[method], torch.Generator().manual_seed(0)
    sides = {name: leading_subspace(w, rank, row.side) if row.side else None for name, w in weights.items()}
    return {name: row.start(w, sides[name], rank, generator) for name, w in weights.items()}


def three(model: nn.Module, weights: dict[str, Tensor], rank: int) -> dict[str, tuple[nn.Module, list[nn.Parameter]]]:
    """The base alone, with our default method on it, with PEFT's LoRA on it."""
    ours, theirs = copy.deepcopy(model), copy.deepcopy(model)
    learn = begin(ours, starts(weights, "qr", rank), "run")
    return {
        "base": (model, []),
        "ours": (ours, learn),
        "peft lora": (theirs, list(plain.begin(theirs, starts(weights, "lora", rank)).values())),
    }


def rows(name: str, ways: dict[str, tuple[nn.Module, list[nn.Parameter]]], loss: Callable[[nn.Module], Tensor],
         rounds: int) -> list[Row]:  # fmt: skip
    """Extra seconds and extra bytes; loss(model) has the forward pass."""
    updates = {way: update(model, parameters, loss) for way, (model, parameters) in ways.items()}
    bytes_ = {way: peak(model, parameters, loss) / 1e6 for way, (model, parameters) in ways.items()}
    for work in updates.values():
        work()
    laps = {way: [] for way in ways}
    for _ in range(rounds):
        for way, work in updates.items():
            laps[way].append(seconds(work))
    extra = {way: [a - b for a, b in zip(laps[way], laps["base"], strict=True)] for way in ("ours", "peft lora")}
    median = sorted(laps["base"])[rounds // 2]
    more = {way: [bytes_[way] - bytes_["base"]] for way in ("ours", "peft lora")}
    return [
        Row(f"{name}, extra time", extra, GOAL, {"base alone": f"{median * 1e3:.3g} ms"}),
        Row(f"{name}, extra memory", more, GOAL, {"base alone": f"{bytes_['base']:.3g} MB"}, "MB"),
    ]


def update(model: nn.Module, parameters: list[nn.Parameter], loss: Callable[[nn.Module], Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.Adam(parameters, lr=1e-4, fused=True) if parameters else None

    def work() -> None:
        loss(model).backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return work


def peak(model: nn.Module, parameters: list[nn.Parameter], loss: Callable[[nn.Module], Tensor]) -> int:
    """Most bytes alive in an update whose optimizer has its moments."""
    with Live([*model.parameters(), *model.buffers()]) as live:
        if parameters:
            optimizer = torch.optim.Adam(parameters, lr=1e-4, fused=True)
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            optimizer.zero_grad()
        loss(model).backward()
        for parameter in parameters:
            parameter.grad = None
    return live.peak


def built_in(name: str, rounds: int) -> list[Row]:
    base = open_base(name, "cpu")
    own, generator = base.defaults.for_run("content", "qr"), torch.Generator().manual_seed(0)
    b = own.batch_size
    side = own.resolution // getattr(base.pipe, "vae_scale_factor", 8)
    clean = torch.randn(b, base.pipe.vae.config.latent_channels, side, side, generator=generator)
    noise, time = torch.randn(clean.shape, generator=generator), base.noising.sample_time(b, generator)
    condition = base.encode_prompt(["a <c>"] * b, Framing.plain(own.resolution, own.resolution))
    noise.requires_grad_(True)

    def loss(model: nn.Module) -> Tensor:
        noise.grad = None
        return denoising_loss(base.family.predict, model, base.noising, clean, noise, time, condition)

    weights = {layer: weight.clone() for layer, weight in base.weights(own.targets)}
    return rows(f"{name}, batch {b}, rank {own.rank}", three(base.model, weights, own.rank), loss, rounds)


def attention(width: int, tokens: int, dtype: torch.dtype, rounds: int) -> list[Row]:
    """A norm and one attention layer of diffusers behind it, as in every block; rank 64."""
    from diffusers.models.attention_processor import Attention

    torch.manual_seed(0)
    layer = Attention(query_dim=width, heads=width // 64, dim_head=64)
    model = nn.Sequential(nn.LayerNorm(width), layer).to(dtype).requires_grad_(False)
    x = torch.randn(1, tokens, width, dtype=dtype, requires_grad=True)

    def loss(model: nn.Module) -> Tensor:
        x.grad = None
        return model(x).float().square().mean()

    # leading directions of the identity: any orthonormal ones will do for time and memory
    weights = {f"1.{name}": torch.eye(width) for name in ("to_q", "to_k", "to_v", "to_out.0")}
    kind = str(dtype).removeprefix("torch.")
    return rows(f"attention {width} wide, {tokens} tokens, {kind}", three(model, weights, 64), loss, rounds)


def main() -> None:
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    rounds = 3 if options.quick else 15
    measured = []
    for name in ("tiny-sdxl", "tiny-sd3", "tiny-flux"):
        measured += built_in(name, rounds)
    for width, tokens in ((640, 1024), (1280, 256), *([] if options.quick else [(3072, 256), (1280, 1024)])):
        for dtype in (torch.float32, torch.bfloat16):
            measured += attention(width, tokens, dtype, max(rounds // 2, 3))
    report("A training step", measured, options.folder)


if __name__ == "__main__":
    main()
