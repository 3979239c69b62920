"""The jobs of a study: small values that say all that a result depends on, and are named by a hash of it."""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from .. import __version__
from ..families import Base
from ..families.base_digest import identity as base_identity
from ..world.classifiers import CLASSIFIER_FILE
from . import code_digest
from .image_pairs import CaptionedImage, Pair

FORMAT = 1
"""Of a result's file; raised when its meaning changes."""
LEARNING, DRAWING = "training", "comparison.run_job"
"""Modules that, with all that they import, make an adapter, and a measured picture."""
LIBRARIES = ("torch", "diffusers", "transformers", "tokenizers", "peft", "numpy", "pillow")


@dataclass(frozen=True)
class BaseSpec:
    """A base model as every worker opens it, and what it must find."""

    base: str
    device: str
    dtype: str
    digest: str
    """Of all that tells it from others: `base_digest`."""


@dataclass(frozen=True)
class TrainJob:
    """Learn one adapter from one picture."""

    place: BaseSpec
    shown: CaptionedImage
    settings: Mapping[str, Any]
    """Of `TrainConfig`, without None, base and files."""
    title: str
    """For people: "content robot, lora"."""

    @cached_property
    def identity(self) -> str:
        """Equal for jobs with equal results."""
        told = {"settings": dict(self.settings), "prompt": self.shown.prompt, "picture": _sha(self.shown.picture)}
        return job_identity("learn", self.place, LEARNING, told)


@dataclass(frozen=True)
class SampleJob:
    """Fuse, draw and judge one pair with one method."""

    place: BaseSpec
    method: str
    """A row of FUSIONS, or one of the ends of the scale."""
    variant: str
    """The method as it was asked for: "lora:learning_rate=0.001"."""
    pair: Pair
    content: TrainJob | None
    """The content adapter's job; the oracle's adapter; None: the method uses none."""
    style: TrainJob | None
    seeds: tuple[int, ...]
    unrelated: tuple[str, ...]
    """One prompt for each seed, of which the adapters should change nothing."""
    encoders: tuple[str, ...]
    """As they are opened: by short name, hub name or folder."""
    encoder_identities: tuple[str, ...]
    """What each of them is, and every worker must find: `Encoder.identity`."""
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
            "encoders": self.encoder_identities,
            "defaults": dict(self.defaults),
            "judges": _judges(),
        }
        return job_identity("draw", self.place, DRAWING, told)


Job = TrainJob | SampleJob


def job_identity(kind: str, place: BaseSpec, module: str, told: Mapping[str, Any]) -> str:
    """24 hex digits of everything that decides a result: the versions and code that make it, the base, what is told.

    The device is not among it: on another one the same result comes out, to rounding. Each row says which it was.

    Args: module: that makes it, with all that it imports (`code.digest`).
    """
    whole = {"versions": versions(), "code": code_digest.digest(module), "base": place.digest, "dtype": place.dtype}
    return _sha(json.dumps({"kind": kind, **whole, **told}, sort_keys=True, default=list).encode())[:24]


@cache
def versions() -> dict[str, str]:
    """Of this program and of the libraries that compute."""
    return {
        "qrlora": f"{__version__}, format {FORMAT}",
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def base_digest(base: Base) -> str:
    """What tells an open base from others of its name, for learning and drawing (hex)."""
    sampler = {"sampler": type(base.pipe.scheduler).__name__, **base.pipe.scheduler.config}
    told = {**base_identity(base), "plain framing": base.plain_framing}
    told["sampling"] = {name: value for name, value in sampler.items() if not name.startswith("_")}
    return _sha(json.dumps(told, sort_keys=True, default=str).encode())


@cache
def _judges() -> str:
    return _sha(CLASSIFIER_FILE.read_bytes())


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
