"""The two judges of the known-answer world: which thing is it, whatever the style; which style, whatever the thing.

Two small convolutional networks, trained on true pictures alone and apart from every base:
``python -m qrlora.world.judges`` trains both and writes ``judges.safetensors`` with their accuracy on pairs of content
and style that neither has seen.  They stand in for DINO and CLIP where nobody can download those.
"""

import argparse
import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

from .atlas import contents, true_pictures
from .styles import ALL_STYLES

JUDGES = Path(__file__).parent / "judges.safetensors"
UNSEEN = 10
"""One pair of content and style in so many is kept from the judges' training and is what their accuracy is taken on."""


def _convolution(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


class Judge(nn.Module):
    """Pictures (b, 3, 64, 64) in 0..1 -> scores (b, classes); ``features`` (b, 192) before the last layer."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width, 4 * width)
        stages: list[nn.Module] = []
        for k in range(4):
            stages += _convolution(widths[k], widths[k + 1], stride=2)
            if k in (1, 2):
                stages += _convolution(widths[k + 1], widths[k + 1], stride=1)
        self.body = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.neck = nn.Linear(16 * width, 192)
        self.head = nn.Linear(192, classes)

    def features(self, pictures: Tensor) -> Tensor:
        return self.neck(self.body(pictures * 2 - 1))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(F.relu(self.features(pictures)))


@dataclass(frozen=True)
class Verdict:
    content: str
    style: str
    content_probability: float
    style_probability: float


def untrained() -> nn.ModuleDict:
    return nn.ModuleDict({"content": Judge(len(contents()), 32), "style": Judge(len(ALL_STYLES), 24)})


@cache
def judges() -> nn.ModuleDict:
    """Both trained judges, in evaluation mode on the CPU."""
    if not JUDGES.exists():
        raise FileNotFoundError(f"{JUDGES} is missing; `python -m qrlora.world.judges` trains and writes it")
    both = untrained()
    with safe_open(JUDGES, "pt") as file:
        both.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return both.float().eval().requires_grad_(False)


def accuracy_on_unseen() -> dict[str, float]:
    """The judges' accuracy on true pictures of unseen pairs, as measured when they were trained."""
    with safe_open(JUDGES, "pt") as file:
        return json.loads(file.metadata()["accuracy"])


@torch.no_grad()
def judge(pictures: Tensor, among: tuple[str, ...] | None = None) -> list[Verdict]:
    """What the judges see in pictures (b, 3, 64, 64) in 0..1; ``among`` narrows the contents that may be answered."""
    names, styles = contents(), tuple(ALL_STYLES)
    scores = judges()["content"](pictures)
    if among is not None:
        allowed = torch.tensor([name in set(among) for name in names])
        scores = scores.masked_fill(~allowed, -torch.inf)
    content = scores.softmax(1).max(1)
    style = judges()["style"](pictures).softmax(1).max(1)
    return [
        Verdict(names[c], styles[s], float(pc), float(ps))
        for c, s, pc, ps in zip(content.indices, style.indices, content.values, style.values, strict=True)
    ]


def all_true_pictures() -> Tensor:
    """Every content in every style: (contents, styles, 3, 64, 64), 8 bit."""
    return torch.stack([true_pictures(contents(), s) for s in ALL_STYLES], 1).mul(255).round().byte()


def unseen_pairs() -> Tensor:
    """Which pairs training must not show: (contents, styles) of bool, one in ten, each row and column touched."""
    content, style = torch.arange(len(contents()))[:, None], torch.arange(len(ALL_STYLES))[None]
    return (content * 7 + style * 3) % UNSEEN == 0


def disturbed(pictures: Tensor, generator: Generator) -> Tensor:
    """Pictures as a generator might draw them: moved, scaled, blurred, noisy; (b, 3, 64, 64) in 0..1."""
    b = len(pictures)
    scale = 1 + 0.15 * (2 * torch.rand(b, generator=generator) - 1)
    shift = 0.12 * (2 * torch.rand(b, 2, generator=generator) - 1)
    turn = 0.12 * (2 * torch.rand(b, generator=generator) - 1)
    rows = torch.stack(
        [torch.cos(turn) * scale, -torch.sin(turn) * scale, shift[:, 0]]
        + [torch.sin(turn) * scale, torch.cos(turn) * scale, shift[:, 1]],
        1,
    ).reshape(b, 2, 3)
    moved = F.grid_sample(
        pictures, F.affine_grid(rows, list(pictures.shape), align_corners=False), "bilinear", "border", False
    )
    still = (torch.rand(b, generator=generator) < 0.4)[:, None, None, None]
    moved = torch.where(still, pictures, moved)
    soft = F.avg_pool2d(F.pad(moved, (1, 1, 1, 1), mode="replicate"), 3, 1)
    blur = (1.2 * torch.rand(b, generator=generator) - 0.4).clamp(0, 0.8)[:, None, None, None]
    noise = (0.2 * torch.rand(b, generator=generator) - 0.08).clamp(min=0)[:, None, None, None]
    return (moved + blur * (soft - moved) + noise * torch.randn(moved.shape, generator=generator)).clamp(0, 1)


def train(epochs: int, seed: int = 0) -> tuple[nn.ModuleDict, dict[str, float]]:
    """Both judges on all seen pairs, one pass per epoch, and their accuracy on the unseen ones."""
    torch.manual_seed(seed)
    generator = Generator().manual_seed(seed)
    pictures = all_true_pictures()
    seen = (~unseen_pairs()).nonzero()
    both = untrained().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(both.parameters(), lr=3e-3, weight_decay=0.02, fused=True)
    batch, total = 128, epochs * (len(seen) // 128)
    for step in range(total):
        if step % (len(seen) // batch) == 0:
            order = torch.randperm(len(seen), generator=generator)
        pairs = seen[order[step * batch % (len(seen) - batch + 1) :][:batch]]
        seeing = disturbed(pictures[pairs[:, 0], pairs[:, 1]].float() / 255, generator)
        seeing = seeing.contiguous(memory_format=torch.channels_last)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / total))
        content_loss = F.cross_entropy(both["content"](seeing), pairs[:, 0], label_smoothing=0.05)
        style_loss = F.cross_entropy(both["style"](seeing), pairs[:, 1], label_smoothing=0.05)
        (content_loss + style_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step}/{total}: content {content_loss.item():.3f}, style {style_loss.item():.3f}", flush=True)
    both.eval().requires_grad_(False)
    return both, unseen_accuracy(both, pictures)


def unseen_accuracy(both: nn.ModuleDict, pictures: Tensor) -> dict[str, float]:
    """Share of unseen true pictures (contents, styles, 3, 64, 64; 8 bit) each judge names correctly."""
    pairs = unseen_pairs().nonzero()
    chunks = [pictures[p[:, 0], p[:, 1]].float() / 255 for p in pairs.split(256)]
    right = {
        kind: torch.cat([both[kind](x).argmax(1) for x in chunks]).eq(pairs[:, column]).float().mean().item()
        for column, kind in enumerate(("content", "style"))
    }
    return right | {"pictures": len(pairs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--output", type=Path, default=JUDGES)
    parser.add_argument("--check", action="store_true", help="only measure the judges that are there")
    args = parser.parse_args()
    if args.check:
        print(unseen_accuracy(judges(), all_true_pictures()))
        return
    both, accuracy = train(args.epochs)
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in both.state_dict().items()}
    save_file({k: t.contiguous() for k, t in tensors.items()}, args.output, {"accuracy": json.dumps(accuracy)})
    print(accuracy, f"{args.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
