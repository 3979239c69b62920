"""The jobs of a study: small values that say all that a result depends on, and are named by a hash of it."""

import ast
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..families import Base
from ..storage import raw_bytes
from ..world.judges import JUDGES
from .pairs import Pair, Shown

FORMAT = 1
"""Of a result's file; raised when its meaning changes."""
PACKAGE = Path(__file__).parents[1]
LEARNING = (
    "adapter attach basis config contrast data families files lanczos linalg methods noise parallel training".split()
)
"""Rooms that a learnt adapter depends on."""
DRAWING = "analysis baselines evaluation merging sampling study/work".split()
DRAWING += [f"world/{room}" for room in ("atlas", "captions", "demo", "judges", "styles")]
"""Rooms that a measured picture depends on beside those."""
LIBRARIES = ("torch", "diffusers", "transformers", "peft")


@dataclass(frozen=True)
class Place:
    """A base model as every worker opens it, and what it must find."""

    base: str
    device: str
    dtype: str
    weights: str
    """SHA-256 of all its weights."""


@dataclass(frozen=True)
class Learn:
    """Learn one adapter from one picture."""

    place: Place
    shown: Shown
    settings: Mapping[str, Any]
    """Of `TrainConfig`, without None, base and files."""
    title: str
    """For people: "content robot, lora"."""

    @cached_property
    def identity(self) -> str:
        """Equal for jobs with equal results."""
        told = {"settings": dict(self.settings), "prompt": self.shown.prompt, "picture": _sha(self.shown.picture)}
        return named("learn", self.place, LEARNING, told)


@dataclass(frozen=True)
class Draw:
    """Fuse, draw and judge one pair with one method."""

    place: Place
    method: str
    """A row of FUSIONS, or one of the ends of the scale."""
    variant: str
    """The method as it was asked for: "lora:learning_rate=0.001"."""
    pair: Pair
    content: Learn | None
    """The content adapter's job; the oracle's adapter; None: the method uses none."""
    style: Learn | None
    seeds: tuple[int, ...]
    unrelated: tuple[str, ...]
    """One prompt for each seed, of which the adapters should change nothing."""
    encoders: tuple[str, ...]
    learn_seed: int
    defaults: Mapping[str, Any]
    """The base's own settings, which drawing uses."""

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.variant}: {self.pair.name}"

    @cached_property
    def identity(self) -> str:
        """Equal for jobs with equal results."""
        pictures = [self.pair.content, self.pair.style, *([self.pair.truth] if self.pair.truth else [])]
        told = {
            "method": self.method,
            "adapters": [job and job.identity for job in (self.content, self.style)],
            "pictures": [(_sha(x.picture), x.prompt, x.content, x.style) for x in pictures],
            "prompts": [self.pair.prompt, *self.unrelated],
            "seeds": [*self.seeds, self.learn_seed],
            "encoders": self.encoders,
            "defaults": dict(self.defaults),
            "judges": _judges(),
        }
        return named("draw", self.place, LEARNING + DRAWING, told)


Job = Learn | Draw


def named(kind: str, place: Place, rooms: Sequence[str], told: Mapping[str, Any]) -> str:
    """24 hex digits of everything that decides a result: the versions and code that make it, the base, what is told.

    The device is not among it: on another one the same result comes out, to rounding. Each row says which it was.
    """
    whole = {"versions": versions(), "code": code(tuple(rooms)), "weights": place.weights, "dtype": place.dtype}
    return _sha(json.dumps({"kind": kind, **whole, **told}, sort_keys=True, default=list).encode())[:24]


@cache
def versions() -> dict[str, str]:
    """Of this program and of the libraries that compute."""
    return {
        "qrlora": f"{__version__}, format {FORMAT}",
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
    }


@cache
def code(rooms: tuple[str, ...]) -> str:
    """A digest of some rooms' code without comments and docstrings: in development the version alone says little."""
    state = hashlib.sha256()
    for room in sorted(rooms):
        place = PACKAGE / room
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                body = getattr(node, "body", None)
                if isinstance(body, list):
                    said = [x for x in body if isinstance(x, ast.Expr) and isinstance(x.value, ast.Constant)]
                    node.body = [x for x in body if x not in said]  # pyright: ignore[reportAttributeAccessIssue]
            state.update(f"{path.relative_to(PACKAGE)} {ast.dump(tree)}".encode())
    return state.hexdigest()


def weights_of(base: Base) -> str:
    """SHA-256 of every part's tensors: two bases of one name need not be one base."""
    state = hashlib.sha256()
    for name, part in sorted(base.pipe.components.items()):
        if isinstance(part, torch.nn.Module):
            for key, tensor in sorted(part.state_dict().items()):
                state.update(f"{name} {key} {tuple(tensor.shape)}".encode())
                state.update(raw_bytes(tensor))
    return state.hexdigest()


@cache
def _judges() -> str:
    return _sha(JUDGES.read_bytes())


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
