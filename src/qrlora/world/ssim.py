"""SSIM, the structural similarity of two images."""

import torch
import torch.nn.functional as F
from torch import Tensor


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004): Gaussian window of 11 pixels and sigma 1.5, K 0.01 and 0.03.

    Args:    (b, c, h, w) each, in 0..1, at least 11 pixels a side.
    Returns: (b,), 1 for equal images: the mean over channels and over the windows that lie inside.
    """
    if first.shape != second.shape or first.ndim != 4 or min(first.shape[-2:]) < 11:
        raise ValueError(
            f"SSIM needs two batches of one shape, 11 pixels or more, got {first.shape} and {second.shape}"
        )
    x, y = first.double(), second.double()
    offsets = torch.arange(11, dtype=torch.float64) - 5
    gaussian = torch.exp(-offsets.square() / (2 * 1.5**2))
    window = torch.outer(gaussian, gaussian) / gaussian.sum() ** 2

    def blurred(values: Tensor) -> Tensor:
        return F.conv2d(values.flatten(0, 1)[:, None], window[None, None]).unflatten(0, values.shape[:2])[:, :, 0]

    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (numerator / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).flatten(1).mean(1)
