"""Whose checkpoint it is: what a run's numbers follow from, and what else their last digits hang on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from typing import Any

import torch

from .. import __version__
from ..config import TrainConfig, as_dict
from ..families import Base
from ..families.base_digest import identity as base_identity
from ..injection import strengths
from ..training_example import Picture

ELSEWHERE = (
    "output",
    "overwrite",
    "device",
    "offload",
    "gradient_checkpointing",
    "save_every",
    "checkpoint_dir",
    "preview_every",
    "preview_prompt",
    "tensorboard",
)
"""Settings that say where a run is done and what is seen of it, not what it learns: the adapter does not keep them."""
LIBRARIES = ("torch", "diffusers", "transformers", "peft")


def identity(config: TrainConfig, base: Base, picture: Picture) -> dict[str, Any]:
    """What must be equal for a run to be repeated: settings, the picture as the base sees it, the base.

    Names of files stand for nothing, and nothing here was computed by a device. `steps`, which matters while the rate
    falls, is the checkpoint's own affair.
    """
    own = (*ELSEWHERE, "steps", "image", "base", "revision")
    settings = {name: value for name, value in as_dict(config).items() if name not in own}
    size = (picture.image.height, picture.image.width)
    framing = base.framing(original=picture.original, corner=picture.corner, target=size)
    seen = hashlib.sha256(f"{size} {framing}".encode() + picture.image.tobytes()).hexdigest()[:16]
    applied = strengths(base.model)  # the adapters' numbers are among the model's own
    acts = hashlib.sha256(json.dumps(applied).encode()).hexdigest()[:16] if applied else ""
    parts = {f"the base's {name}": value for name, value in base_identity(base).items()}
    return {"qrlora": __version__, **settings, "picture": seen, "adapters worn": acts, **parts}


def circumstances(base: Base, processes: int) -> dict[str, Any]:
    """What changes a run's last digits: on one kind of device, with one release of the libraries, it is repeated to the
    byte, elsewhere to rounding.

    Args: processes: how many share a batch.
    """
    device = base.device
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        kind = torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else device.type
        name = f"{platform.machine()} {kind}, {torch.get_num_threads()} threads"
    release = {library: importlib.metadata.version(library) for library in LIBRARIES}
    exactness = torch.get_float32_matmul_precision()  # TF32, which some programs ask for
    return {"device": name, "offload": base.offload, "processes": processes, "matmul": exactness, **release}
