"""The jobs of a comparison, as values that hold everything a result depends on and are identified by a hash of it."""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from typing import Any

from .. import __version__
from ..families import Base
from ..families.base_digest import component_digests
from ..world.classifiers import CLASSIFIER_FILE
from . import code_digest
from .decomposition import DecomposedPrompt
from .image_pairs import CaptionedImage, Pair

FORMAT = 1
"""Version of the result files; raised when their meaning changes."""
TRAINING_MODULE, SAMPLING_MODULE = "training", "comparison.run_job"
"""The modules whose code, with all that they import, an adapter and a scored image depend on."""
LIBRARIES = ("torch", "diffusers", "transformers", "tokenizers", "peft", "numpy", "pillow")


@dataclass(frozen=True)
class BaseSpec:
    """The base model that every worker opens, with its expected digest."""

    base: str
    device: str
    dtype: str
    digest: str
    """`base_digest` of it, which every worker checks."""


@dataclass(frozen=True)
class TrainJob:
    """Train one adapter on one image."""

    base_spec: BaseSpec
    training_image: CaptionedImage
    settings: Mapping[str, Any]
    """Settings of `TrainConfig`, without None, base and files."""
    title: str
    """For progress and messages: "content of robot in dusk, lora"."""

    @cached_property
    def identity(self) -> str:
        """`job_identity` of a training: equal for jobs with equal results."""
        inputs = {
            "settings": dict(self.settings),
            "prompt": self.training_image.prompt,
            "picture": _sha256(self.training_image.file),
        }
        return job_identity("learn", self.base_spec, TRAINING_MODULE, inputs)


@dataclass(frozen=True)
class SampleJob:
    """Fuse one pair's adapters with one method, sample images and score them."""

    base_spec: BaseSpec
    method: str
    """A row of FUSIONS, or one of `run_job.BOUNDS`."""
    variant: str
    """The method's spec as the user wrote it: "lora:learning_rate=0.001"."""
    pair: Pair
    content: TrainJob | None
    """The content adapter's job; the oracle's adapter; None: the method uses none."""
    style: TrainJob | None
    seeds: tuple[int, ...]
    unrelated: tuple[str, ...]
    """One prompt for each seed, whose images the adapters should leave unchanged."""
    encoders: tuple[str, ...]
    """Vision encoders by short name, hub name or folder."""
    encoder_identities: tuple[str, ...]
    """`Encoder.identity` of each, which every worker checks."""
    training_seed: int
    defaults: Mapping[str, Any]
    """The base's default settings, which sampling uses."""
    decomposed: tuple[DecomposedPrompt, ...] = ()
    """Prompts whose images show each adapter by itself; none: they are not drawn."""

    @property
    def title(self) -> str:
        """For progress and messages."""
        return f"{self.variant}: {self.pair.name}"

    @cached_property
    def identity(self) -> str:
        """`job_identity` of sampling: equal for jobs with equal results."""
        images = [self.pair.content, self.pair.style, *([self.pair.truth] if self.pair.truth else [])]
        inputs = {
            "method": self.method,
            "adapters": [job and job.identity for job in (self.content, self.style)],
            "pictures": [(_sha256(x.file), x.prompt, x.content, x.style) for x in images],
            "prompts": [self.pair.prompt, *self.unrelated],
            "seeds": [*self.seeds, self.training_seed],
            "encoders": self.encoder_identities,
            "defaults": dict(self.defaults),
            "judges": _classifiers_digest(),
        }
        if self.decomposed:
            inputs["decomposed"] = [asdict(x) for x in self.decomposed]
        return job_identity("draw", self.base_spec, SAMPLING_MODULE, inputs)


Job = TrainJob | SampleJob


def job_identity(kind: str, base_spec: BaseSpec, module: str, inputs: Mapping[str, Any]) -> str:
    """Hash (24 hex digits) of all that a result depends on: library versions, code, base and the job's inputs.

    The device is left out: on another one the result is the same, to rounding. Each row of a result names its device.

    Args: module: the module that makes the result; its code and all that it imports counts (`digest_of_code`).
    """
    common = {
        "versions": versions(),
        "code": code_digest.digest_of_code(module),
        "base": base_spec.digest,
        "dtype": base_spec.dtype,
    }
    return _sha256(json.dumps({"kind": kind, **common, **inputs}, sort_keys=True, default=list).encode())[:24]


@cache
def versions() -> dict[str, str]:
    """{name: version} of qrlora and of the libraries that a job's result depends on."""
    return {
        "qrlora": f"{__version__}, format {FORMAT}",
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def base_digest(base: Base) -> str:
    """SHA-256 (hex) of everything of a job's base that training and sampling depend on."""
    sampler = {"sampler": type(base.pipe.scheduler).__name__, **base.pipe.scheduler.config}
    inputs = {**component_digests(base), "plain framing": base.always_uncropped}
    inputs["sampling"] = {name: value for name, value in sampler.items() if not name.startswith("_")}
    return _sha256(json.dumps(inputs, sort_keys=True, default=str).encode())


@cache
def _classifiers_digest() -> str:
    return _sha256(CLASSIFIER_FILE.read_bytes())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
