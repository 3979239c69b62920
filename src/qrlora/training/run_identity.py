"""What a training run is known by in its checkpoint and output: the inputs of its result, and where it is computed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Sequence
from typing import Any

import torch

from .. import __version__
from ..config import TrainConfig, as_stored_dict
from ..families import Base
from ..families.base_digest import component_digests
from ..image_loading import CroppedImage
from ..injection import strengths

NOT_IN_HEADER = (
    "output",
    "overwrite",
    "device",
    "offload",
    "gradient_checkpointing",
    "save_every",
    "adapter_every",
    "checkpoint_dir",
    "preview_every",
    "preview_prompt",
    "tensorboard",
)
"""Settings that change where a run is done and what is shown of it, not the adapter: its header omits them."""
LIBRARIES = ("torch", "diffusers", "transformers", "peft")


def run_identity(
    config: TrainConfig, base: Base, images: Sequence[CroppedImage], captions: Sequence[str]
) -> dict[str, Any]:
    """All that must be equal for a run to give the same adapter: settings, the preprocessed images in their order with
    their captions, the base's weights.

    File names do not count, and nothing here was computed by a device. `steps`, which changes a run only where the
    learning rate decays, is compared by the checkpoint itself.
    """
    omitted = (*NOT_IN_HEADER, "steps", "image", "crop", "mask", "base", "revision")
    settings = {name: value for name, value in as_stored_dict(config).items() if name not in omitted}
    digests = [_image_digest(base, image) for image in images]
    if len(images) > 1:  # the caption of a single image is the setting `prompt`
        digests = [_digest(json.dumps([digests, list(captions)]).encode())]
    applied = strengths(base.model)  # the adapters' tensors are among the model's own
    applied_digest = _digest(json.dumps(applied).encode()) if applied else ""
    components = {f"the base's {name}": value for name, value in component_digests(base).items()}
    # checkpoints hold these keys: they stay
    return {"qrlora": __version__, **settings, "picture": digests[0], "adapters worn": applied_digest, **components}


def _image_digest(base: Base, image: CroppedImage) -> str:
    """What a run is known by of an image: digest of its pixels, its mask, and its size and crop conditioning."""
    size = (image.image.height, image.image.width)
    seen = base.size_conditioning(image.original, image.corner, size)
    # checkpoints hold digests of this text: it stays
    sizes = f"{size} Framing(original={seen.original_size}, corner={seen.crop_top_left}, target={seen.target_size})"
    mask = b"" if image.mask is None else image.mask.tobytes()
    return _digest(sizes.encode() + image.image.tobytes() + mask)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def numeric_environment(base: Base, processes: int) -> dict[str, Any]:
    """What changes a run's rounding only: device, libraries, processes. A run is reproduced to the byte where they are
    equal, else to rounding.

    Args: processes: the number of processes that a batch is distributed over.
    """
    device = base.device
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        kind = torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else device.type
        name = f"{platform.machine()} {kind}, {torch.get_num_threads()} threads"
    versions = {library: importlib.metadata.version(library) for library in LIBRARIES}
    precision = torch.get_float32_matmul_precision()  # TF32, which some programs switch on
    return {"device": name, "offload": base.offload, "processes": processes, "matmul": precision, **versions}
