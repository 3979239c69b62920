"""PIL images to tensors of the synthetic benchmark's size, and back."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .drawings import SIZE


def pil_from_tensor(images: Tensor) -> list[Image.Image]:
    """Images (b, 3, h, w) in 0..1 as b 8-bit RGB images."""
    return [Image.fromarray(x) for x in (images * 255).round().byte().permute(0, 2, 3, 1).numpy()]


def tensor_from_pil(images: Sequence[Image.Image]) -> Tensor:
    """Images as (b, 3, 128, 128) in 0..1, resized to the classifiers' input size."""
    resized = [x.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS) for x in images]
    return torch.from_numpy(np.stack([np.asarray(x, dtype=np.float32) for x in resized])).permute(0, 3, 1, 2) / 255
