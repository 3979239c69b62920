"""Train and evaluate the two classifiers: ``python -m qrlora.world.classifier_training`` writes weights and accuracy.

They are trained on true images by every hand in every style; one image in four is a wrong fusion, labelled "none".
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ..output_files import check_writable
from ..safetensors_files import read_safetensors, write_safetensors
from .classifiers import (
    CLASSIFIER_FILE,
    load_classifiers,
    probabilities_by_style,
    style_class_names,
    untrained_classifiers,
)
from .command_line import DEVICES, EXCERPT, at_least, available_device, positive, run_command
from .drawings import HANDS, SIZE, check_full_sheets, contents, contents_drawn_by, count_drawings, load_drawings
from .model_folders import open_vae
from .random_styles import random_style
from .state_dicts import shape_difference
from .styles import ALL_STYLES

VALIDATION_EVERY = 10
"""One pair of content and style in so many is held out from training, for measuring the accuracy."""
GROUPS = 12
"""Parts of a batch that the command trains on; the images of each share a style."""


def is_validation_pair(content: Tensor, style: Tensor, hand: Tensor) -> Tensor:
    """Which images (n,) are of pairs held out from training: one in ten, of every content and every style."""
    return (content * 7 + style * 3 + hand * 5) % VALIDATION_EVERY == 0


def augment(images: Tensor, generator: Generator) -> Tensor:
    """Augment images (b, 3, h, w) in 0..1 for the classifiers' training: randomly shifted, scaled, rotated, blurred and
    noised as a base might."""
    b = len(images)
    scale = 1 + 0.12 * (2 * torch.rand(b, generator=generator) - 1)
    shift = 0.10 * (2 * torch.rand(b, 2, generator=generator) - 1)
    turn = 0.10 * (2 * torch.rand(b, generator=generator) - 1)
    rows = torch.stack(
        [torch.cos(turn) * scale, -torch.sin(turn) * scale, shift[:, 0]]
        + [torch.sin(turn) * scale, torch.cos(turn) * scale, shift[:, 1]],
        1,
    ).reshape(b, 2, 3)
    field = F.affine_grid(rows, list(images.shape), align_corners=False).to(images)
    moved = F.grid_sample(images, field, "bilinear", "border", False)

    def spread(x: Tensor) -> Tensor:
        return x[:, None, None, None].to(images)

    moved = torch.where(spread(torch.rand(b, generator=generator) < 0.5).bool(), images, moved)
    soft = F.avg_pool2d(F.pad(moved, (1, 1, 1, 1), mode="replicate"), 3, 1)
    blur = (1.2 * torch.rand(b, generator=generator) - 0.4).clamp(0, 0.7)
    noise = (0.15 * torch.rand(b, generator=generator) - 0.06).clamp(min=0)
    return (moved + spread(blur) * (soft - moved) + spread(noise) * torch.randn_like(moved)).clamp(0, 1)


@torch.no_grad()
def vae_round_trip(vae: Any, images: Tensor) -> Tensor:
    """Images (b, 3, h, w) in 0..1, encoded and decoded by a VAE."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
        return (vae.decode(vae.encode(images * 2 - 1).latents).sample.float() / 2 + 0.5).clamp(0, 1)


class LabelledImages:
    """Random batches of true images and of wrong fusions on a device, with the classifiers' targets."""

    def __init__(self, device: str, seed: int = 0) -> None:
        self.generator, self.device = Generator().manual_seed(seed), device
        index = {name: k for k, name in enumerate(contents())}
        rows = [(index[n], k) for k, hand in enumerate(HANDS) for n in contents_drawn_by(hand)]
        self.content, self.hand = (torch.tensor(column) for column in zip(*rows, strict=True))
        tiles = torch.cat([load_drawings(contents_drawn_by(hand), hand) for hand in HANDS])
        self.tiles = tiles.mul(255).round().byte().to(device)
        self.styles = list(ALL_STYLES.values())
        self.random = [random_style(self.generator, device) for _ in range(64)]

    def sample_true(self, count: int, training_pairs: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """True images to train the classifiers on: ``count`` contents in one style, of training or of held-out pairs:
        (images, plain tiles, content, style)."""
        g = self.generator
        s = int(torch.randint(len(self.styles), (), generator=g)) if torch.rand((), generator=g) < 0.75 else 0
        while True:
            rows = torch.randint(len(self.content), (4 * VALIDATION_EVERY * count,), generator=g)
            rows = rows[is_validation_pair(self.content[rows], torch.tensor(s), self.hand[rows]) != training_pairs][
                :count
            ]
            if len(rows) == count:
                break
        tiles = self.tiles[rows.to(self.device)].float() / 255
        style = torch.full((count,), s)
        if s == 0:  # plain: the class is the hand
            style = torch.where(self.hand[rows] > 0, len(self.styles) - 1 + self.hand[rows], 0)
        return self.styles[s](tiles).clamp(0, 1), tiles, self.content[rows], style

    def sample_wrong(self, count: int) -> tuple[Tensor, Tensor, Tensor, str]:
        """Wrong fusions to train the classifiers on: (images, content target, style target, kind); a target of -1 is
        ignored by the loss.

        Half a style, two styles, a random style: the style target is "none", the content stays.  Two contents in one:
        the content target is "none".  Blurred or blocky beyond recognition: content "none", style ignored.
        """
        g, none = self.generator, (len(contents()), len(style_class_names()))
        images, tiles, content, style = self.sample_true(count)
        kind = ("half", "two", "random", "contents", "blurred", "blocky")[int(torch.randint(6, (), generator=g))]
        share = float(0.35 + 0.3 * torch.rand((), generator=g))
        if kind == "half":
            far = (images - tiles).abs().mean((1, 2, 3)).cpu() > 0.04  # half of nothing is nothing
            images = tiles + share * (images - tiles)
            return images, content, torch.where(far, none[1], -1), kind
        if kind == "two":
            other = self.styles[int(torch.randint(1, len(self.styles), (), generator=g))](tiles).clamp(0, 1)
            far = (images - other).abs().mean((1, 2, 3)).cpu() > 0.06
            return share * images + (1 - share) * other, content, torch.where(far, none[1], -1), kind
        if kind == "random":
            look = self.random[int(torch.randint(len(self.random), (), generator=g))]
            return look(tiles).clamp(0, 1), content, torch.full((count,), none[1]), kind
        if kind == "contents":
            far = (images - images.roll(1, 0)).abs().mean((1, 2, 3)).cpu() > 0.04
            mixed = share * images + (1 - share) * images.roll(1, 0)
            return mixed, torch.where(far, none[0], -1), torch.full((count,), -1), kind
        size, mode = (5, "bilinear") if kind == "blurred" else (6, "nearest")
        coarse = F.interpolate(F.interpolate(images, size=size, mode="area"), size=SIZE, mode=mode)
        return coarse, torch.full((count,), none[0]), _ignored_labels(count), kind


def _ignored_labels(count: int) -> Tensor:
    return torch.full((count,), -1)


def read_classifiers(path: Path, models: nn.ModuleDict) -> dict[str, Tensor]:
    """Weights of both classifiers to start from. Raises: OSError.  ValueError: the file holds something else."""
    weights, _ = read_safetensors(path)
    if difference := shape_difference(models.state_dict(), weights):
        raise ValueError(f"{path} holds no classifiers of this version: {difference}")
    return weights


def train_classifiers(
    seconds: float,
    device: str = "cpu",
    batch: int = 192,
    group: int = 16,
    seed: int = 0,
    start: Path | None = None,
    vae: Any = None,
    learning_rate: float = 3e-3,
    log: Callable[..., None] = print,
) -> nn.ModuleDict:
    """Train both classifiers for so many seconds, on training pairs and, one image in four, wrong fusions.

    Args: batch: images a step.  group: of them share one style.  start: file of weights to start from.
          vae: of a base; a third of the images then make its round trip, as generated images come out of it.
    """
    torch.manual_seed(seed)
    images = LabelledImages(device, seed)
    models = untrained_classifiers()
    if start:
        models.load_state_dict(read_classifiers(start, models))
    models.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(models.parameters(), lr=learning_rate, weight_decay=0.02, fused=True)
    begun, step, over = time.monotonic(), 0, 0.0
    while over < 1:
        over = min(1.0, (time.monotonic() - begun) / seconds)
        parts, groups = [], batch // group
        for k in range(groups):
            if 4 * k < groups:
                parts.append(images.sample_wrong(group)[:3])
            else:
                x, _, content, style = images.sample_true(group)
                parts.append((x, content, style))
        x, content, style = (torch.cat(column) for column in zip(*parts, strict=True))
        x = augment(x, images.generator).contiguous(memory_format=torch.channels_last)
        if vae is not None:
            x[::3] = vae_round_trip(vae, x[::3])
        for options in optimizer.param_groups:
            options["lr"] = learning_rate * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * over))
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            losses = [
                F.cross_entropy(models[name](x).float(), right.to(device), ignore_index=-1, label_smoothing=0.05)
                for name, right in (("content", content), ("style", style))
            ]
        sum(losses[1:], losses[0]).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            log(
                f"classifiers: step {step}, {over:.0%}: content {losses[0].item():.3f}, style {losses[1].item():.3f}",
                flush=True,
            )
        step += 1
    return models.float().cpu().eval().requires_grad_(False)


@torch.no_grad()
def measure_classifiers(
    models: nn.ModuleDict, groups: int = 150, group: int = 16, seed: int = 1
) -> dict[str, dict[str, float]]:
    """The classifiers' accuracy, and how many wrong fusions they accept.

    Returns: "accuracy" on true images of unseen pairs: content, style (all hands being plain) and hand (which one,
             of plain drawings); "false_alarms": share of wrong fusions that are given a content, or a style other than
             plain, though there is none, in all and by kind (`LabelledImages.sample_wrong`).
    """
    images, first_hand = LabelledImages("cpu", seed), len(ALL_STYLES)
    right: dict[str, list[bool]] = {"content": [], "style": [], "hand": []}
    false: dict[str, list[bool]] = {}
    for _ in range(groups):
        x, _, content, style = images.sample_true(group, training_pairs=False)
        scores = models["style"](x)
        right["content"] += (models["content"](x).argmax(1) == content).tolist()
        plain = (style == 0) | (style >= first_hand)
        right["style"] += (probabilities_by_style(scores).argmax(1) == torch.where(plain, 0, style)).tolist()
        hand = torch.cat([scores[:, :1], scores[:, first_hand:-1]], 1).argmax(1)
        right["hand"] += (hand == torch.where(style == 0, 0, style - first_hand + 1))[plain].tolist()
        x, content, style, kind = images.sample_wrong(group)
        given = {"content": models["content"](x).argmax(1) != len(contents())}
        answer = probabilities_by_style(models["style"](x)).argmax(1)
        given["style"] = (answer != 0) & (answer != first_hand)
        asked = {"content": content == len(contents()), "style": style == len(style_class_names())}
        for name in given:
            rows = given[name][asked[name]].tolist()
            for key in (name, f"{name}, {kind}") if rows else ():
                false.setdefault(key, []).extend(rows)
    shares = {name: sum(rows) / max(1, len(rows)) for name, rows in right.items()}
    return {
        "accuracy": shares | {"pictures": groups * group},
        "false_alarms": {name: sum(rows) / len(rows) for name, rows in sorted(false.items())},
    }


def save_classifiers(models: nn.ModuleDict, path: Path, quality: dict[str, dict[str, float]]) -> None:
    """Write both classifiers' weights in 16 bits, with `measure_classifiers`' result and the count of each hand's
    drawings in the metadata."""
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in models.state_dict().items()}
    drawings = count_drawings(HANDS, contents())
    write_safetensors(path, tensors, {"measured": json.dumps(quality), "drawings": json.dumps(drawings)})


def command_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=positive, default=3600)
    parser.add_argument("--device", default="cpu", choices=DEVICES)
    parser.add_argument("--batch", type=at_least(GROUPS), default=192)
    parser.add_argument("--learning-rate", type=positive, default=3e-3)
    parser.add_argument("--start", type=Path, help="file of classifiers to start from")
    parser.add_argument("--vae", type=Path, help="folder of a base's VAE: a third of the images make its round trip")
    parser.add_argument("--output", type=Path, default=CLASSIFIER_FILE, help="file; default: that of this package")
    parser.add_argument("--overwrite", action="store_true", help="replace the output, if it is there")
    parser.add_argument("--excerpt", action="store_true", help=EXCERPT)
    parser.add_argument("--check", action="store_true", help="only evaluate the existing classifiers")
    return parser


def train_or_check(options: argparse.Namespace) -> None:
    """What the command does: train both classifiers and write them, or take those there are; measure either."""
    if options.check:
        print(json.dumps(measure_classifiers(load_classifiers()), indent=2))
        return
    check_writable(options.output, options.overwrite)
    if not options.excerpt:
        check_full_sheets(HANDS)
    device = available_device(options.device)
    vae = nn.Module.to(open_vae(options.vae).eval(), device) if options.vae else None
    group, rate = options.batch // GROUPS, options.learning_rate
    models = train_classifiers(
        options.seconds, device, options.batch, group, start=options.start, vae=vae, learning_rate=rate
    )
    quality = measure_classifiers(models)
    save_classifiers(models, options.output, quality)
    print(json.dumps(quality, indent=2))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command that trains both classifiers."""
    run_command(train_or_check, command_parser(), arguments)


if __name__ == "__main__":
    main()
