"""The training set of a built-in base: latents of true images, computed once, with their content, hand and style.

Four kinds of images, each with its fraction of every batch (`BATCH_SHARES`): known contents by every known hand; those
of the plain hand in every known style; contents by the other hands in known styles; contents by any known hand in
random styles, which have no name.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from ..safetensors_files import read_safetensors, write_safetensors
from .captions import STYLE
from .drawings import HANDS, KNOWN_HANDS, PLAIN_HAND, SIZE, contents_drawn_by, known_contents, load_drawings
from .random_styles import random_style
from .styles import STYLES, Style

BATCH_SHARES = {"hands": 0.25, "styles": 0.40, "styled hands": 0.10, "random": 0.25}
"""Kind of image -> its fraction of a batch."""
IMAGES_PER_STYLE = 25
"""Images that share a random style: sampling and checking a style is slow."""


@dataclass(frozen=True)
class TrainingSet:
    """n latents with the labels of their images."""

    latents: Tensor
    """(n, c, h, w) float16, mean about 0 and variance about 1."""
    content: Tensor
    """(n,) indices into `known_contents`."""
    hand: Tensor
    """(n,) indices into `HANDS`."""
    style: Tensor
    """(n,) indices into `STYLES`; -1: a random style, which has no name."""
    kinds: dict[str, tuple[int, int]]
    """Kind -> first row and the one after its last."""

    def sample_rows(self, count: int, generator: Generator) -> Tensor:
        """Random rows of the training set for a batch (count,): `BATCH_SHARES` of each kind, rounded; the last kind
        fills up."""
        rows, left = [], count
        for k, (kind, (first, end)) in enumerate(self.kinds.items()):
            n = left if k == len(self.kinds) - 1 else round(BATCH_SHARES[kind] * count)
            rows.append(torch.randint(first, end, (n,), generator=generator))
            left -= n
        return torch.cat(rows)

    def labels(self, row: int) -> tuple[str, str, str]:
        """(content, style, hand) of a row of the training set, as `captions.training_caption` takes them."""
        style = int(self.style[row])
        styles, hands = tuple(STYLES), tuple(HANDS)
        return (
            known_contents()[int(self.content[row])],
            styles[style] if style >= 0 else STYLE,
            hands[int(self.hand[row])],
        )


def _planned_groups(
    styled_hands: int, random: int, generator: Generator, device: str
) -> Iterator[tuple[str, Style, list[tuple[int, int, int]]]]:
    """The plan of a training set: (kind, style function, rows of (content, hand, style)) of all images, by groups of
    one hand and one style."""
    names, styles, hands = known_contents(), tuple(STYLES), tuple(HANDS)
    index = {name: k for k, name in enumerate(names)}
    drawn = {h: [index[n] for n in contents_drawn_by(h) if n in index] for h in KNOWN_HANDS}
    for h in KNOWN_HANDS:
        yield "hands", STYLES["plain"], [(c, hands.index(h), 0) for c in drawn[h]]
    for s, style in enumerate(styles[1:], 1):
        yield "styles", STYLES[style], [(c, hands.index(PLAIN_HAND), s) for c in drawn[PLAIN_HAND]]
    others = [(h, s) for h in KNOWN_HANDS if h != PLAIN_HAND for s in range(1, len(styles))]
    each = max(1, styled_hands // len(others)) if styled_hands else 0
    for h, s in others if each else []:
        chosen = torch.randperm(len(drawn[h]), generator=generator)[:each].tolist()
        yield "styled hands", STYLES[styles[s]], [(drawn[h][c], hands.index(h), s) for c in chosen]
    for _ in range(random // IMAGES_PER_STYLE):
        style = random_style(generator, device)
        h = KNOWN_HANDS[int(torch.randint(len(KNOWN_HANDS), (), generator=generator))]
        chosen = torch.randperm(len(drawn[h]), generator=generator)[:IMAGES_PER_STYLE].tolist()
        yield "random", style, [(drawn[h][c], hands.index(h), -1) for c in chosen]


@torch.no_grad()
def build_training_set(
    vae: Any, styled_hands: int, random: int, seed: int, device: str, log: Callable[[str], Any] = print
) -> TrainingSet:
    """Render and encode all images of a training set; on a CPU about ten a second.

    Args: vae: of the base, on ``device``.  styled_hands, random: about how many images of these kinds.
    """
    generator = Generator().manual_seed(seed)
    names, hands = known_contents(), tuple(HANDS)
    tiles: dict[int, Tensor] = {}
    rows: list[tuple[int, int, int]] = []
    kinds: dict[str, tuple[int, int]] = {}
    latents: list[Tensor] = []
    for kind, style, group in _planned_groups(styled_hands, random, generator, device):
        hand = group[0][1]
        if hand not in tiles:
            drawn = [k for k, name in enumerate(names) if name in contents_drawn_by(hands[hand])]
            tiles[hand] = torch.zeros(len(names), 3, SIZE, SIZE)
            tiles[hand][drawn] = load_drawings([names[k] for k in drawn], hands[hand])
            tiles[hand] = tiles[hand].to(device)
        images = style(tiles[hand][[c for c, _, _ in group]]).clamp(0, 1).mul(255).round() / 255
        for batch in images.split(256):
            with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
                z = vae.encode(batch.to(memory_format=torch.channels_last) * 2 - 1).latents
            latents.append((z * vae.config.scaling_factor).half().contiguous())
        kinds[kind] = (kinds.get(kind, (len(rows), 0))[0], len(rows) + len(group))
        if len(rows) // 5000 < (len(rows) + len(group)) // 5000:
            log(f"{len(rows) + len(group)} images encoded")
        rows += group
    content, hand_, style_ = (torch.tensor(column) for column in zip(*rows, strict=True))
    return TrainingSet(torch.cat(latents), content, hand_, style_, kinds)


def training_set_digest(vae: Any, styled_hands: int, random: int, seed: int) -> str:
    """SHA-256 (hex) of all that a training set is made from: the drawings, the VAE, the counts."""
    digest = hashlib.sha256(f"{styled_hands} {random} {seed} {tuple(STYLES)} {tuple(HANDS)}".encode())
    for hand in KNOWN_HANDS:
        names = [n for n in contents_drawn_by(hand) if n in set(known_contents())]
        digest.update(repr(names).encode())
        digest.update(load_drawings(names, hand).mul(255).round().byte().numpy().tobytes())
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(name.encode() + tensor.half().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_training_set(path: Path, data: TrainingSet, digest: str) -> None:
    """Write a training set and its digest, whole or not at all."""
    tensors = {"latents": data.latents, "content": data.content, "hand": data.hand, "style": data.style}
    write_safetensors(path, tensors, {"identity": digest, **{kind: f"{a} {b}" for kind, (a, b) in data.kinds.items()}})


def load_training_set(path: Path, digest: str, device: str = "cpu") -> TrainingSet:
    """A training set from its file, with the latents on a device.

    Raises: OSError.  ValueError: it is none, or was made from other sheets, another VAE or other counts than the
            digest's.
    """
    tensors, metadata = read_safetensors(path)
    if "identity" not in metadata or tensors.keys() != {"latents", "content", "hand", "style"}:
        raise ValueError(f"{path} holds no training set of pre-training: give another file, or one that is not there")
    if metadata["identity"] != digest:
        raise ValueError(
            f"{path} was made from other sheets, another VAE or other counts than this run has: give it those, "
            "or move the file away to build it anew"
        )
    ranges = {kind: metadata[kind].split() for kind in BATCH_SHARES if kind in metadata}
    kinds = {kind: (int(first), int(end)) for kind, (first, end) in ranges.items()}
    return TrainingSet(tensors["latents"].to(device), tensors["content"], tensors["hand"], tensors["style"], kinds)
