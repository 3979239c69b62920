"""Files as other tools write them, from the key lists in foreign/ that their own code made."""

import functools
import itertools
import re
from pathlib import Path

import torch

FOLDER = Path(__file__).parent / "foreign"
UNIT = 64
"""What widths are divided by, so that files stay small; all are multiples of it but those of latents."""


@functools.cache
def listed(name):
    """({entry of the head: value}, {layer's name: shape or None}) of a list."""
    head, rows = {}, {}
    for line in (FOLDER / f"{name}.txt").read_text("utf-8").splitlines():
        if line.startswith("# "):
            word, _, value = line[2:].partition(": ")
            head[word] = value
            continue
        template, *rest = line.split(" ")
        shape = tuple(map(int, rest.pop(0).split("x"))) if rest and "x" in rest[0] else None
        for numbers in itertools.chain.from_iterable(map(_numbers, rest or [""])):
            rows[_filled(template, numbers)] = shape
    return head, rows


def _numbers(text):
    """Every tuple of numbers that "4,1,0-9" stands for."""
    *first, last = text.split(",")
    low, _, high = last.partition("-")
    return [(*first, str(k)) for k in range(int(low), int(high or low) + 1)] if last else [()]


def _filled(template, numbers):
    following = iter(numbers)
    return re.sub("#", lambda _: next(following), template)


def small(size, unit=UNIT):
    """A width of a small file."""
    return max(1, size // unit)


def tensors(name, alpha=1.0, rank=2, unit=UNIT, endings=None, rename=str, only=""):
    """The tensors of a file with random numbers, which half precision holds exactly.

    Args: alpha: of each layer, if the tool writes any.  rename: (layer's name) -> another.
          only: how the names begin of the layers to take.
    """
    head, rows = listed(name)
    ends = (endings or head["endings"]).split()
    made, generator = {}, torch.Generator().manual_seed(0)
    for layer, (o, i, *kernel) in rows.items():
        if not layer.startswith(only):
            continue
        A = torch.randint(-8, 9, (rank, small(i, unit), *kernel), generator=generator).half() / 8
        B = torch.randint(-8, 9, (small(o, unit), rank, *(1 for _ in kernel)), generator=generator).half() / 8
        B[0, 0], A[0, 0] = 1, 1  # never all zero
        for ending in ends:
            kind = "alpha" if "alpha" in ending else "A" if re.search("down|_A", ending) else "B"
            made[rename(layer) + ending] = {"A": A, "B": B, "alpha": torch.tensor(alpha)}[kind]
    return made


def energy(made, alpha=None):
    """The sum of |s B A|^2 over a file's pairs in float64, where s = alpha / r, or 1 without."""
    total = 0.0
    for key, A in made.items():
        for down, up in (("down", "up"), ("_A", "_B")):
            other = key.replace(f"lora{down}", f"lora{up}").replace(f"lora_{down}", f"lora_{up}")
            other = other.replace(f"lora.{down}", f"lora.{up}")
            if other != key and other in made:
                a, b = (x.double().flatten(1) for x in (A, made[other]))
                scale = 1.0 if alpha is None else alpha / len(a)
                total += scale**2 * float(((b.T @ b) * (a @ a.T)).sum())
    return total
