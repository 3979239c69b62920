"""SSIM, the structural similarity of two images."""

import torch
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
    rows, columns = (gaussian_windows(size).to(x) for size in x.shape[-2:])

    def blurred(values: Tensor) -> Tensor:
        return rows @ values @ columns.T

    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (numerator / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).flatten(1).mean(1)


def gaussian_windows(size: int) -> Tensor:
    """(size - 10, size), float64: a row for each place of a window of 11 pixels and sigma 1.5, weights of sum 1. The
    window of two dimensions is the product of one for each, so that two matrix products blur an image; a convolution in
    float64 takes ten times as long on a CPU."""
    places = torch.arange(size, dtype=torch.float64) - torch.arange(5, size - 5, dtype=torch.float64)[:, None]
    gaussian = torch.exp(-places.square() / (2 * 1.5**2)).where(places.abs() <= 5, 0.0)
    return gaussian / gaussian.sum(1, keepdim=True)
