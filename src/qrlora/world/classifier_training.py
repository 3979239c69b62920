"""The classifiers' training and their strictness: ``python -m qrlora.world.classifier_training`` writes both.

True pictures by every hand and of every style, one in four in its place a wrong fusion to which the answer is "none".
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from .classifiers import CLASSIFIERS, by_style, classifiers, style_names, untrained
from .drawings import HANDS, SIZE, contents, drawings, drawn_by
from .random_styles import random_style
from .styles import ALL_STYLES

UNSEEN = 10
"""One pair of content and style in so many is kept from training and is what the accuracy is taken on."""


def unseen(content: Tensor, style: Tensor, hand: Tensor) -> Tensor:
    """Which pictures training must not show: one in ten, of every content and every style."""
    return (content * 7 + style * 3 + hand * 5) % UNSEEN == 0


def disturbed(pictures: Tensor, generator: Generator) -> Tensor:
    """Pictures as a generator might draw them: moved, scaled, softened, noisy; (b, 3, h, w) in 0..1."""
    b = len(pictures)
    scale = 1 + 0.12 * (2 * torch.rand(b, generator=generator) - 1)
    shift = 0.10 * (2 * torch.rand(b, 2, generator=generator) - 1)
    turn = 0.10 * (2 * torch.rand(b, generator=generator) - 1)
    rows = torch.stack(
        [torch.cos(turn) * scale, -torch.sin(turn) * scale, shift[:, 0]]
        + [torch.sin(turn) * scale, torch.cos(turn) * scale, shift[:, 1]],
        1,
    ).reshape(b, 2, 3)
    field = F.affine_grid(rows, list(pictures.shape), align_corners=False).to(pictures)
    moved = F.grid_sample(pictures, field, "bilinear", "border", False)

    def spread(x: Tensor) -> Tensor:
        return x[:, None, None, None].to(pictures)

    moved = torch.where(spread(torch.rand(b, generator=generator) < 0.5).bool(), pictures, moved)
    soft = F.avg_pool2d(F.pad(moved, (1, 1, 1, 1), mode="replicate"), 3, 1)
    blur = (1.2 * torch.rand(b, generator=generator) - 0.4).clamp(0, 0.7)
    noise = (0.15 * torch.rand(b, generator=generator) - 0.06).clamp(min=0)
    return (moved + spread(blur) * (soft - moved) + spread(noise) * torch.randn_like(moved)).clamp(0, 1)


@torch.no_grad()
def redrawn(vae: Any, pictures: Tensor) -> Tensor:
    """Pictures (b, 3, h, w) in 0..1 through the VAE and back."""
    with torch.autocast(pictures.device.type, torch.bfloat16, enabled=pictures.is_cuda):
        return (vae.decode(vae.encode(pictures * 2 - 1).latents).sample.float() / 2 + 0.5).clamp(0, 1)


class Pictures:
    """True and wrong pictures on a device, with what the judges should answer."""

    def __init__(self, device: str, seed: int = 0) -> None:
        self.generator, self.device = Generator().manual_seed(seed), device
        place = {name: k for k, name in enumerate(contents())}
        rows = [(place[n], k) for k, hand in enumerate(HANDS) for n in drawn_by(hand)]
        self.content, self.hand = (torch.tensor(column) for column in zip(*rows, strict=True))
        tiles = torch.cat([drawings(drawn_by(hand), hand) for hand in HANDS])
        self.tiles = tiles.mul(255).round().byte().to(device)
        self.styles = list(ALL_STYLES.values())
        self.random = [random_style(self.generator, device) for _ in range(64)]

    def draw(self, count: int, shown: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pictures of ``count`` contents in one style: (pictures, tiles, content, style); seen pairs or unseen ones."""
        g = self.generator
        s = int(torch.randint(len(self.styles), (), generator=g)) if torch.rand((), generator=g) < 0.75 else 0
        while True:
            rows = torch.randint(len(self.content), (4 * UNSEEN * count,), generator=g)
            rows = rows[unseen(self.content[rows], torch.tensor(s), self.hand[rows]) != shown][:count]
            if len(rows) == count:
                break
        tiles = self.tiles[rows.to(self.device)].float() / 255
        style = torch.full((count,), s)
        if s == 0:  # plain: the hand is what is named
            style = torch.where(self.hand[rows] > 0, len(self.styles) - 1 + self.hand[rows], 0)
        return self.styles[s](tiles).clamp(0, 1), tiles, self.content[rows], style

    def wrong(self, count: int) -> tuple[Tensor, Tensor, Tensor, str]:
        """Pictures that are nearly right, what the judges should answer (-1: do not ask), and which kind it is.

        Half a style, two styles, a style without a word: no style of the world; the content stays.  Two contents in
        one: no content.  Blurred or blocky beyond recognition: neither is asked for but "none" as content.
        """
        g, none = self.generator, (len(contents()), len(style_names()))
        pictures, tiles, content, style = self.draw(count)
        kind = ("half", "two", "random", "contents", "blurred", "blocky")[int(torch.randint(6, (), generator=g))]
        share = float(0.35 + 0.3 * torch.rand((), generator=g))
        if kind == "half":
            far = (pictures - tiles).abs().mean((1, 2, 3)).cpu() > 0.04  # half of nothing is nothing
            pictures = tiles + share * (pictures - tiles)
            return pictures, content, torch.where(far, none[1], -1), kind
        if kind == "two":
            other = self.styles[int(torch.randint(1, len(self.styles), (), generator=g))](tiles).clamp(0, 1)
            far = (
                torch.minimum(
                    (pictures - other).abs().mean((1, 2, 3)), torch.full((count,), 1.0, device=other.device)
                ).cpu()
                > 0.06
            )
            return share * pictures + (1 - share) * other, content, torch.where(far, none[1], -1), kind
        if kind == "random":
            look = self.random[int(torch.randint(len(self.random), (), generator=g))]
            return look(tiles).clamp(0, 1), content, torch.full((count,), none[1]), kind
        if kind == "contents":
            far = (pictures - pictures.roll(1, 0)).abs().mean((1, 2, 3)).cpu() > 0.04
            mixed = share * pictures + (1 - share) * pictures.roll(1, 0)
            return mixed, torch.where(far, none[0], -1), torch.full((count,), -1), kind
        if kind == "blurred":
            small = F.interpolate(pictures, size=5, mode="area")
            return (
                F.interpolate(small, size=SIZE, mode="bilinear"),
                torch.full((count,), none[0]),
                _nothing(count),
                kind,
            )
        small = F.interpolate(pictures, size=6, mode="area")
        return F.interpolate(small, size=SIZE, mode="nearest"), torch.full((count,), none[0]), _nothing(count), kind


def _nothing(count: int) -> Tensor:
    return torch.full((count,), -1)


def train(
    seconds: float,
    device: str = "cpu",
    batch: int = 192,
    group: int = 16,
    seed: int = 0,
    start: Path | None = None,
    vae: Any = None,
    learning_rate: float = 3e-3,
    say: Callable[..., None] = print,
) -> nn.ModuleDict:
    """Both judges after so many seconds of training on seen pairs and wrong fusions, one picture in four wrong.

    Args: start: judges to go on from.  vae: a base's; a third of the pictures then go through it, as drawn ones do.
    """
    torch.manual_seed(seed)
    pictures = Pictures(device, seed)
    both = untrained()
    if start:
        both.load_state_dict(load_file(start))
    both.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(both.parameters(), lr=learning_rate, weight_decay=0.02, fused=True)
    begun, step, over = time.monotonic(), 0, 0.0
    while over < 1:
        over = min(1.0, (time.monotonic() - begun) / seconds)
        parts, groups = [], batch // group
        for k in range(groups):
            if 4 * k < groups:
                parts.append(pictures.wrong(group)[:3])
            else:
                x, _, content, style = pictures.draw(group)
                parts.append((x, content, style))
        x, content, style = (torch.cat(column) for column in zip(*parts, strict=True))
        x = disturbed(x, pictures.generator).contiguous(memory_format=torch.channels_last)
        if vae is not None:
            x[::3] = redrawn(vae, x[::3])
        for options in optimizer.param_groups:
            options["lr"] = learning_rate * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * over))
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            losses = [
                F.cross_entropy(both[name](x).float(), right.to(device), ignore_index=-1, label_smoothing=0.05)
                for name, right in (("content", content), ("style", style))
            ]
        sum(losses[1:], losses[0]).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            say(
                f"judges: step {step}, {over:.0%}: content {losses[0].item():.3f}, style {losses[1].item():.3f}",
                flush=True,
            )
        step += 1
    return both.float().cpu().eval().requires_grad_(False)


@torch.no_grad()
def measure(both: nn.ModuleDict, groups: int = 150, group: int = 16, seed: int = 1) -> dict[str, dict[str, float]]:
    """How good and how strict the judges are.

    Returns: "accuracy" on true pictures of unseen pairs: content, style (all hands being plain) and hand (which one,
             of plain drawings); "false_alarms": share of wrong fusions that are given a content, or a style other than
             plain, though there is none, in all and by kind (`Pictures.wrong`).
    """
    pictures, first_hand = Pictures("cpu", seed), len(ALL_STYLES)
    right: dict[str, list[bool]] = {"content": [], "style": [], "hand": []}
    false: dict[str, list[bool]] = {}
    for _ in range(groups):
        x, _, content, style = pictures.draw(group, shown=False)
        scores = both["style"](x)
        right["content"] += (both["content"](x).argmax(1) == content).tolist()
        plain = (style == 0) | (style >= first_hand)
        right["style"] += (by_style(scores).argmax(1) == torch.where(plain, 0, style)).tolist()
        hand = torch.cat([scores[:, :1], scores[:, first_hand:-1]], 1).argmax(1)
        right["hand"] += (hand == torch.where(style == 0, 0, style - first_hand + 1))[plain].tolist()
        x, content, style, kind = pictures.wrong(group)
        given = {"content": both["content"](x).argmax(1) != len(contents())}
        answer = by_style(both["style"](x)).argmax(1)
        given["style"] = (answer != 0) & (answer != first_hand)
        asked = {"content": content == len(contents()), "style": style == len(style_names())}
        for name in given:
            rows = given[name][asked[name]].tolist()
            for key in (name, f"{name}, {kind}") if rows else ():
                false.setdefault(key, []).extend(rows)
    shares = {name: sum(rows) / max(1, len(rows)) for name, rows in right.items()}
    return {
        "accuracy": shares | {"pictures": groups * group},
        "false_alarms": {name: sum(rows) / len(rows) for name, rows in sorted(false.items())},
    }


def write(both: nn.ModuleDict, path: Path, told: dict[str, dict[str, float]]) -> None:
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in both.state_dict().items()}
    save_file({k: t.contiguous() for k, t in tensors.items()}, path, {"measured": json.dumps(told)})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=192)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--start", type=Path, help="judges to go on from")
    parser.add_argument("--vae", type=Path, help="folder of a base's VAE: a third of the pictures go through it")
    parser.add_argument("--output", type=Path, default=CLASSIFIERS)
    parser.add_argument("--check", action="store_true", help="only measure the judges that are there")
    args = parser.parse_args()
    vae = AutoencoderTiny.from_pretrained(args.vae).float().to(args.device).eval() if args.vae else None
    options = {"batch": args.batch, "group": args.batch // 12, "start": args.start, "vae": vae}
    options["learning_rate"] = args.learning_rate
    both = classifiers() if args.check else train(args.seconds, args.device, **options)
    told = measure(both)
    if not args.check:
        write(both, args.output, told)
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
