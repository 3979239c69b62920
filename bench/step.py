"""Time and memory that an adapter adds to a training step, against PEFT's LoRA of the same rank on the same layers.

    python bench/step.py
    python bench/step.py --device cuda      # also SDXL, SD3-medium and FLUX.1-dev whole, with random weights

"Extra" is over the frozen base's own forward and backward pass (its input asks for a gradient, so that there is one).
Memory is the most bytes alive at once in an update beyond the weights: activations, gradients, Adam's two moments.
The three built-in bases with their own settings; then one attention layer at the widths of SDXL and FLUX.1. The floor
is what learning anything there takes: x A^T, the gradient of B, the optimizer's pass, and autograd's way to them.
"""

import copy
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from harness import FLOOR, Row, above, arguments, extra, laps, report, seconds
from qrlora.config import TrainConfig
from qrlora.estimate.memory_counting import LiveBytes
from qrlora.families import Base, SizeConditioning, open_base
from qrlora.families.base_without_weights import blank_base, blank_example, materialise
from qrlora.initialisation_methods import METHODS
from qrlora.injection import initialise
from qrlora.training import denoising_loss
from qrlora.training.distributed import Processes
from qrlora.training.training_loop import make_loss
from qrlora.training_example import TrainingExamples

sys.path.append(str(Path(__file__).parents[1] / "testing"))
import plain  # noqa: E402  (PEFT's layers, as the tests compare with)

GOAL = "<=0.5x"
FULL_SIZE = {"sdxl": (1024, "20x"), "sd3-medium": (512, ""), "flux-dev": (512, "6.7x")}
"""{base: (pixels, how many times less than the paper's 20 minutes on an A800 its 500 updates are to take)}."""
Shapes = Mapping[str, tuple[int, int]]
"""{layer: (o, i)} of those that learn."""
Ways = dict[str, tuple[nn.Module, list[nn.Parameter]]]
"""{way: (model, its trainable parameters)}."""
TrainingImage = Callable[[nn.Module], Tensor]
"""(model) -> the loss, with the forward pass in it."""


def starts(shapes: Shapes, method: str, rank: int) -> dict[str, Any]:
    """Any orthonormal directions will do for time and memory."""
    row, generator = METHODS[method], torch.Generator().manual_seed(0)
    found = {}
    for name, (o, i) in shapes.items():
        Q = torch.linalg.qr(torch.randn(i, rank, generator=generator)).Q if row.side == "input" else None
        found[name] = row.start(torch.empty(o, i, device="meta"), Q, rank, generator)
    return found


def twin(model: nn.Module) -> nn.Module:
    """Another model of the very same weights, for adapters of its own."""
    return copy.deepcopy(model, {id(x): x for x in [*model.parameters(), *model.buffers()]})


class Unadded(torch.autograd.Function):
    """x W^T + b, and of an update that starts at zero no more than learning it takes: x A^T, kept, and from it the
    gradient of B. What it would add to y and to the gradient of x is left out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor) -> Tensor:
        ctx.save_for_backward(W, x.reshape(-1, x.shape[-1]) @ A.T)
        return nn.functional.linear(x, W, b)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        W, h = ctx.saved_tensors
        (gradient,) = gradients
        g = gradient.reshape(-1, gradient.shape[-1])
        dx = (g @ W).view(*gradient.shape[:-1], -1) if ctx.needs_input_grad[0] else None
        return dx, None, None, None, (g.T @ h).float()


class Floor(nn.Module):
    """A linear layer with an `Unadded` update: the floor of time and memory of any adapter there."""

    def __init__(self, base_layer: nn.Linear, A: Tensor) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.register_buffer("A", A.to(base_layer.weight))
        self.B = nn.Parameter(torch.zeros(base_layer.out_features, len(A), device=base_layer.weight.device))

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        W, b = self.base_layer.weight, self.base_layer.bias
        return Unadded.apply(x, W, b, self.A, self.B)  # pyright: ignore[reportReturnType]


def least(model: nn.Module, shapes: Shapes, rank: int) -> tuple[nn.Module, list[nn.Parameter]]:
    """A twin with Floor in the place of its layers, and its trainable parameters."""
    found, learn = twin(model), []
    for name, start in starts(shapes, "qr", rank).items():
        parent, _, child = name.rpartition(".")
        layer: Any = found.get_submodule(name)
        floor = Floor(layer, start.A)
        setattr(found.get_submodule(parent), child, floor)
        learn.append(floor.B)
    return found, learn


def ways(model: nn.Module, shapes: Shapes, rank: int) -> Ways:
    """The base alone, with our default method on it, with PEFT's LoRA on it, and the floor."""
    ours, theirs = twin(model), twin(model)
    learn = initialise(ours, starts(shapes, "qr", rank), "run")
    lora = plain.initialise(theirs, starts(shapes, "lora", rank))
    theirs.to(next(model.parameters()).device)  # what PEFT's layers learn was made on the CPU
    found = {"base": (model, []), "ours": (ours, learn), "peft lora": (theirs, list(lora.values()))}
    return {**found, FLOOR: least(model, shapes, rank)}


def rows(name: str, ways: Ways, loss: TrainingImage, rounds: int) -> list[Row]:
    """Extra seconds and extra bytes; loss(model) has the forward pass."""
    goals = {"peft lora": GOAL}
    updates = {way: update(model, parameters, loss) for way, (model, parameters) in ways.items()}
    peaks = {way: [peak(model, parameters, loss) / 1e6] for way, (model, parameters) in ways.items()}
    if next(ways["base"][0].parameters()).dtype == torch.bfloat16:  # as most trainers run it
        with_autocast = update(*ways["peft lora"], autocast(loss))
        updates["peft lora, autocast"], goals["peft lora, autocast"] = with_autocast, GOAL
    time = extra(f"{name}, extra time", laps(updates, rounds), "base", goals)
    return [time, extra(f"{name}, extra memory", peaks, "base", {"peft lora": GOAL}, "MB")]


def autocast(loss: TrainingImage) -> TrainingImage:
    """Products in bfloat16 whatever their factors' type."""

    def cast(model: nn.Module) -> Tensor:
        with torch.autocast(next(model.parameters()).device.type, torch.bfloat16):
            return loss(model)

    return cast


def update(model: nn.Module, parameters: list[nn.Parameter], loss: TrainingImage) -> Callable[[], None]:
    optimizer = torch.optim.Adam(parameters, lr=1e-4, fused=True) if parameters else None

    def work() -> None:
        loss(model).backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return work


def peak(model: nn.Module, parameters: list[nn.Parameter], loss: TrainingImage) -> int:
    """Most bytes alive in an update whose optimizer has its moments."""
    with LiveBytes([*model.parameters(), *model.buffers()]) as live:
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


def built_in_lesson(name: str, device: str) -> tuple[Ways, TrainingImage]:
    """A built-in base with its own layers and batch for a content."""
    base = open_base(name, device, "float32")
    base.model.to(base.device)
    own = base.defaults.for_run("content", "qr")
    b, side = own.batch_size, own.resolution // getattr(base.pipe, "vae_scale_factor", 8)
    clean = torch.randn(b, base.pipe.vae.config.latent_channels, side, side).to(device)
    condition = base.encode_prompt(["a <c>"] * b, SizeConditioning.uncropped(own.resolution, own.resolution)).to(device)
    return ways(base.model, shapes(base, own.targets), own.rank), example_and_loss(base, clean, condition)


def full_size(name: str, resolution: int, device: str) -> tuple[Base, Tensor, Any]:
    """A base of full size in bfloat16 with random weights, and latents and a condition of the right shapes."""
    base, _, tokens = blank_base(name)
    nn.Module.to(base.model, torch.bfloat16).requires_grad_(False).eval()
    materialise(base.model, device)
    return base, *blank_example(base, resolution, tokens, 1, device)


def full_size_lesson(name: str, device: str) -> tuple[Ways, TrainingImage]:
    """A base of full size with its own layers, one image."""
    base, clean, condition = full_size(name, FULL_SIZE[name][0], device)
    return ways(base.model, shapes(base, base.defaults.targets), base.defaults.rank), example_and_loss(
        base, clean, condition
    )


def whole(name: str, resolution: int, goal: str, device: str, rounds: int) -> list[Row]:
    """A base of full size; and what 500 updates take by the code that trains, where the paper takes 20 minutes."""
    base, clean, condition = full_size(name, resolution, device)
    layers, rank = shapes(base, base.defaults.targets), base.defaults.rank
    title = f"{name}, {resolution} px, bfloat16"
    found = rows(title, ways(base.model, layers, rank), example_and_loss(base, clean, condition), rounds)
    learn = initialise(base.model, starts(layers, "qr", rank), "run")
    config = TrainConfig(base=name, batch_size=1).filled(base.defaults)
    draw = make_loss(config, base, TrainingExamples(clean, condition), torch.Generator().manual_seed(0), Processes())
    work = update(base.model, learn, lambda _model: draw())
    with FlopCounterMode(display=False) as counted:
        work()
    flops, rate = counted.get_total_flops(), products_a_second(torch.bfloat16, device)
    took, paper = [20 * seconds(lambda: [work() for _ in range(25)]) for _ in range(3)], "the paper, A800"
    row = Row(f"{title}, 500 updates", {"ours": took, paper: [1200.0] * 3}, {paper: goal} if goal else {})
    return [*found, above(row, 500 * flops / rate, f"{flops / 1e12:.1f} TFLOP an update at {rate / 1e12:.0f} a second")]


def products_a_second(dtype: torch.dtype, device: str) -> float:
    """Operations a second of one large matrix product."""
    size = 8192 if device != "cpu" else 1024
    x = torch.randn(size, size, dtype=dtype, device=device)
    return 2 * size**3 / min(seconds(lambda: x @ x) for _ in range(5))


def shapes(base: Base, targets: str) -> Shapes:
    return {name: (layer.out_features, layer.in_features) for name, layer in base.target_layers(targets).items()}


def example_and_loss(base: Base, clean: Tensor, condition: Any) -> TrainingImage:
    """(model) -> the loss of one draw of noise and times, the same each time."""
    noise = torch.randn_like(clean).requires_grad_(True)
    time = base.noising.sample_time(len(clean), torch.Generator().manual_seed(0))

    def loss(model: nn.Module) -> Tensor:
        noise.grad = None
        return denoising_loss(base.family.predict, model, base.noising, clean, noise, time, condition)

    return loss


def block(width: int, tokens: int, dtype: torch.dtype, device: str) -> tuple[nn.Module, Tensor, Shapes]:
    """A norm and one attention layer of diffusers behind it, as in every block; an input; the layers' shapes."""
    from diffusers.models.attention_processor import Attention

    layer = Attention(query_dim=width, heads=width // 64, dim_head=64)
    model = nn.Sequential(nn.LayerNorm(width), layer).to(device, dtype).requires_grad_(False)
    square = {f"1.{name}": (width, width) for name in ("to_q", "to_k", "to_v", "to_out.0")}
    return model, torch.randn(1, tokens, width, dtype=dtype, device=device), square


def attention(width: int, tokens: int, dtype: torch.dtype, device: str, rounds: int) -> list[Row]:
    """Of one block, rank 64."""
    model, x, square = block(width, tokens, dtype, device)
    x.requires_grad_(True)

    def loss(model: nn.Module) -> Tensor:
        x.grad = None
        return model(x).float().square().mean()

    kind = str(dtype).removeprefix("torch.")
    return rows(f"attention {width} wide, {tokens} tokens, {kind}", ways(model, square, 64), loss, rounds)


def main() -> None:
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rounds = 3 if options.quick else 15
    measured = []
    for name in ("tiny-sdxl", "tiny-sd3", "tiny-flux"):
        measured += rows(name, *built_in_lesson(name, options.device), 2 * rounds)  # small parts of their base's time
    for width, tokens in ((640, 1024), (1280, 256), *([] if options.quick else [(3072, 256), (1280, 1024)])):
        for dtype in (torch.float32, torch.bfloat16):
            measured += attention(width, tokens, dtype, options.device, rounds)
    if options.device != "cpu" and not options.quick:
        for name, (resolution, goal) in FULL_SIZE.items():
            measured += whole(name, resolution, goal, options.device, rounds)
    report("A training step", measured, options.folder)


if __name__ == "__main__":
    main()
