"""What a built-in base is pre-trained on: latents of true pictures, computed once, and who drew what in which style.

Four kinds of pictures, each with its share of every batch (`SHARES`): known contents by every known hand; those of the
plain hand in every known style; contents by the other hands in known styles; contents by any known hand in styles drawn
at random, which have no word.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Generator, Tensor

from .captions import STYLE
from .drawings import HANDS, PLAIN_HAND, SIZE, drawings, drawn_by, known_contents
from .random_styles import random_style
from .styles import STYLES, Style

SHARES = {"hands": 0.25, "styles": 0.40, "styled hands": 0.10, "random": 0.25}
"""Kind -> its share of a batch."""
GROUP = 25
"""Pictures that share a random style: a style has a price to draw and to check."""


@dataclass(frozen=True)
class TrainingSet:
    latents: Tensor
    """(n, c, h, w) float16, mean about 0 and variance about 1."""
    content: Tensor
    """(n,) places in `known_contents`."""
    hand: Tensor
    """(n,) places in `HANDS`."""
    style: Tensor
    """(n,) places in `STYLES`; -1: a style without a word."""
    kinds: dict[str, tuple[int, int]]
    """Kind -> first row and the one after its last."""

    def choose(self, count: int, generator: Generator) -> Tensor:
        """Rows of a batch (count,): each kind's share, the first kinds rounded, the last one filling up."""
        rows, left = [], count
        for k, (kind, (first, end)) in enumerate(self.kinds.items()):
            n = left if k == len(self.kinds) - 1 else round(SHARES[kind] * count)
            rows.append(torch.randint(first, end, (n,), generator=generator))
            left -= n
        return torch.cat(rows)

    def named(self, row: int) -> tuple[str, str, str]:
        """(content, style, hand) of a row, as `captions.training_caption` takes them."""
        style = int(self.style[row])
        styles, hands = tuple(STYLES), tuple(HANDS)
        return (
            known_contents()[int(self.content[row])],
            styles[style] if style >= 0 else STYLE,
            hands[int(self.hand[row])],
        )


def _rows(
    styled_hands: int, random: int, generator: Generator, device: str
) -> Iterator[tuple[str, Style, list[tuple[int, int, int]]]]:
    """(kind, style, rows of (content, hand, style)) of everything that is drawn; one hand and one style at a time."""
    names, styles, hands = known_contents(), tuple(STYLES), tuple(HANDS)
    place = {name: k for k, name in enumerate(names)}
    known = [h for h, about in HANDS.items() if not about.held_out]
    drawn = {h: [place[n] for n in drawn_by(h) if n in place] for h in known}
    for h in known:
        yield "hands", STYLES["plain"], [(c, hands.index(h), 0) for c in drawn[h]]
    for s, style in enumerate(styles[1:], 1):
        yield "styles", STYLES[style], [(c, hands.index(PLAIN_HAND), s) for c in drawn[PLAIN_HAND]]
    others = [(h, s) for h in known if h != PLAIN_HAND for s in range(1, len(styles))]
    each = max(1, styled_hands // len(others)) if styled_hands else 0
    for h, s in others if each else []:
        chosen = torch.randperm(len(drawn[h]), generator=generator)[:each].tolist()
        yield "styled hands", STYLES[styles[s]], [(drawn[h][c], hands.index(h), s) for c in chosen]
    for _ in range(random // GROUP):
        style, h = random_style(generator, device), known[int(torch.randint(len(known), (), generator=generator))]
        chosen = torch.randperm(len(drawn[h]), generator=generator)[:GROUP].tolist()
        yield "random", style, [(drawn[h][c], hands.index(h), -1) for c in chosen]


@torch.no_grad()
def build(
    vae: Any, styled_hands: int, random: int, seed: int, device: str, say: Callable[[str], Any] = print
) -> TrainingSet:
    """Draw and encode; on a CPU about ten pictures a second.

    Args: vae: of the base, on ``device``.  styled_hands, random: about how many pictures of these kinds.
    """
    generator = Generator().manual_seed(seed)
    names, hands = known_contents(), tuple(HANDS)
    tiles: dict[int, Tensor] = {}
    rows: list[tuple[int, int, int]] = []
    kinds: dict[str, tuple[int, int]] = {}
    latents: list[Tensor] = []
    for kind, style, group in _rows(styled_hands, random, generator, device):
        hand = group[0][1]
        if hand not in tiles:
            drawn = [k for k, name in enumerate(names) if name in drawn_by(hands[hand])]
            tiles[hand] = torch.zeros(len(names), 3, SIZE, SIZE)
            tiles[hand][drawn] = drawings([names[k] for k in drawn], hands[hand])
            tiles[hand] = tiles[hand].to(device)
        pictures = style(tiles[hand][[c for c, _, _ in group]]).clamp(0, 1).mul(255).round() / 255
        for part in pictures.split(256):
            with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
                z = vae.encode(part.to(memory_format=torch.channels_last) * 2 - 1).latents
            latents.append((z * vae.config.scaling_factor).half().contiguous())
        kinds[kind] = (kinds.get(kind, (len(rows), 0))[0], len(rows) + len(group))
        if len(rows) // 5000 < (len(rows) + len(group)) // 5000:
            say(f"{len(rows) + len(group)} pictures encoded")
        rows += group
    content, hand_, style_ = (torch.tensor(column) for column in zip(*rows, strict=True))
    return TrainingSet(torch.cat(latents), content, hand_, style_, kinds)


def identity(vae: Any, styled_hands: int, random: int, seed: int) -> str:
    """Digest of all that a training set is made from: the drawings, the VAE, the counts."""
    told = hashlib.sha256(f"{styled_hands} {random} {seed} {tuple(STYLES)} {tuple(HANDS)}".encode())
    for hand, about in HANDS.items():
        if not about.held_out:
            names = [n for n in drawn_by(hand) if n in set(known_contents())]
            told.update(repr(names).encode())
            told.update(drawings(names, hand).mul(255).round().byte().numpy().tobytes())
    for name, tensor in sorted(vae.state_dict().items()):
        told.update(name.encode() + tensor.half().cpu().contiguous().numpy().tobytes())
    return told.hexdigest()


def save(path: Path, data: TrainingSet, digest: str) -> None:
    tensors = {"latents": data.latents.cpu(), "content": data.content, "hand": data.hand, "style": data.style}
    save_file(tensors, path, {"identity": digest, **{kind: f"{a} {b}" for kind, (a, b) in data.kinds.items()}})


def load(path: Path, digest: str, device: str = "cpu") -> TrainingSet:
    """Raises: ValueError: it was made from other sheets, another VAE or other counts."""
    with safe_open(path, "pt", device=device) as file:
        told = file.metadata()
        if told["identity"] != digest:
            raise ValueError(
                f"{path} was made from other sheets, another VAE or other counts than this run has: give it those, "
                "or move the file away to begin anew"
            )
        tensors = {name: file.get_tensor(name) for name in ("latents", "content", "hand", "style")}
    kinds = {kind: (int(told[kind].split()[0]), int(told[kind].split()[1])) for kind in SHARES if kind in told}
    content, hand, style = (tensors[k].cpu() for k in ("content", "hand", "style"))
    return TrainingSet(tensors["latents"], content, hand, style, kinds)
