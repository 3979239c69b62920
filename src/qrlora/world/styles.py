"""The 30 named styles of the synthetic benchmark: image filters, each a pure function of an image.

An image is float32 (b, 3, 128, 128) in 0..1, on white.  A style maps it to an image of the same shape and depends on
nothing but the image and fixed textures, so the true image of any content in any style is known.  Lengths are in
units of 1/64 of the side (two pixels), so that a style looks alike at any size.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Style = Callable[[Tensor], Tensor]

UNIT = 2
"""Pixels in 1/64 of an image's side."""


def luminance(x: Tensor) -> Tensor:
    return (x * x.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, of which styles are made; sigma in units."""
    sigma = UNIT * sigma
    radius = math.ceil(2.5 * sigma)
    taps = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (taps / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, -1)
    x = F.pad(x, (radius,) * 4, mode="replicate")
    x = F.conv2d(x, kernel[:, :, None, :], groups=x.shape[1])
    return F.conv2d(x, kernel[:, :, :, None], groups=x.shape[1])


def gradient(x: Tensor) -> tuple[Tensor, Tensor]:
    """Horizontal and vertical slope of the luminance, of which styles are made, per unit; (b, 1, h, w) each."""
    u = UNIT
    y = F.pad(luminance(x), (u,) * 4, mode="replicate")
    return (
        (y[:, :, u:-u, 2 * u :] - y[:, :, u:-u, : -2 * u]) / 2,
        (y[:, :, 2 * u :, u:-u] - y[:, :, : -2 * u, u:-u]) / 2,
    )


def edges(x: Tensor, gain: float = 4.0) -> Tensor:
    dx, dy = gradient(x)
    return (gain * (dx.square() + dy.square()).sqrt()).clamp(0, 1)


def grid(x: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of each pixel in units; (h, 1) and (1, w)."""
    row, column = (torch.arange(n, device=x.device, dtype=x.dtype) / UNIT for n in x.shape[-2:])
    return row[:, None], column[None]


def grain_texture(x: Tensor, seed: int, sigma: float = 0.7) -> Tensor:
    """A fixed grain, of which styles are made, of unit variance and this many units' width, (1, 1, h, w): the same for
    every image."""
    noise = torch.randn(1, 1, *x.shape[-2:], generator=torch.Generator().manual_seed(seed))
    grain = blur(noise, sigma)
    return (grain / grain.std()).to(x)


def mix(amount: Tensor, low: tuple[float, ...], high: tuple[float, ...]) -> Tensor:
    """Linear colour map: ``low`` where amount is 0, ``high`` where it is 1."""
    a, b = (amount.new_tensor(c)[:, None, None] for c in (low, high))
    return a + amount * (b - a)


def ramp(amount: Tensor, *colours: tuple[float, float, float]) -> Tensor:
    """Piecewise linear colour map of a style, with evenly spaced stops."""
    position = amount * (len(colours) - 1)
    return sum(  # type: ignore[return-value]
        amount.new_tensor(c)[:, None, None] * (1 - (position - k).abs()).clamp(min=0) for k, c in enumerate(colours)
    )


def duotone(low: tuple[float, ...], high: tuple[float, ...]) -> Style:
    return lambda x: mix(luminance(x), low, high)


def pixelate(x: Tensor, size: int) -> Tensor:
    """Each square of so many units a side replaced by its mean."""
    size = UNIT * size
    return F.interpolate(F.avg_pool2d(x, size), scale_factor=size, mode="nearest")


def plain(x: Tensor) -> Tensor:
    return x


def sketch(x: Tensor) -> Tensor:
    return (1 - 0.85 * edges(x, 3.5) - 0.12 * (1 - luminance(x))).clamp(0, 1).expand(-1, 3, -1, -1)


def blueprint(x: Tensor) -> Tensor:
    row, column = grid(x)
    ruled = ((row % 8 < 1) | (column % 8 < 1)).to(x) * 0.15
    return mix((edges(x, 4) + ruled).clamp(0, 1), (0.07, 0.22, 0.56), (0.92, 0.96, 1.0))


def neon(x: Tensor) -> Tensor:
    """The style neon."""
    dx, dy = gradient(x)
    edge = (3.5 * (dx.square() + dy.square()).sqrt()).clamp(0, 1)
    angle = torch.atan2(dy, dx)
    hue = torch.cat([0.55 + 0.45 * torch.cos(angle + shift) for shift in (0.0, 2.1, 4.2)], 1)
    glow = edge * hue
    return (glow + 1.2 * blur(glow, 1.5)).clamp(0, 1)


def pixel(x: Tensor) -> Tensor:
    return (pixelate(x, 4) * 5).round() / 5


def sepia(x: Tensor) -> Tensor:
    return ramp(luminance(x), (0.16, 0.08, 0.03), (0.62, 0.43, 0.26), (0.99, 0.93, 0.80))


def halftone(x: Tensor) -> Tensor:
    """The style halftone."""
    row, column = grid(x)
    screen = 0.5 + 0.25 * (torch.cos((row + column) * math.pi / 4) + torch.cos((row - column) * math.pi / 4))
    ink = (6 * ((1 - luminance(x)) * 0.9 + 0.08 - screen) + 0.5).clamp(0, 1)
    return (1 - ink).expand(-1, 3, -1, -1)


def oil(x: Tensor) -> Tensor:
    """The style oil, a Kuwahara filter: each pixel takes the mean of the calmest of its four neighbouring squares."""
    size, best, lowest = 4 * UNIT, None, None
    padded = F.pad(x, (size - 1,) * 4, mode="replicate")
    mean = F.avg_pool2d(padded, size, 1)
    variance = (F.avg_pool2d(padded.square(), size, 1) - mean.square()).sum(1, keepdim=True)
    h, w = x.shape[-2:]
    for top in (0, size - 1):
        for left in (0, size - 1):
            m, v = (t[:, :, top : top + h, left : left + w] for t in (mean, variance))
            best = m if best is None or lowest is None else torch.where(v < lowest, m, best)
            lowest = v if lowest is None else torch.minimum(v, lowest)
    assert best is not None
    grey = luminance(best)
    canvas = 0.05 * grain_texture(x, 1, 1.2)
    return (grey + 1.5 * (best - grey) - 0.08 + canvas).clamp(0, 1)


def chalk(x: Tensor) -> Tensor:
    dust = 0.75 + 0.3 * grain_texture(x, 2)
    return mix((edges(x, 4) * dust).clamp(0, 1), (0.13, 0.29, 0.21), (0.97, 0.97, 0.90))


def pop(x: Tensor) -> Tensor:
    return ramp(
        ((luminance(x) * 3.99).floor() / 3), (0.15, 0.1, 0.55), (0.93, 0.1, 0.5), (1.0, 0.6, 0.1), (1, 0.95, 0.2)
    )


def emboss(x: Tensor) -> Tensor:
    dx, dy = gradient(x)
    return (0.5 + 1.4 * (dx + dy)).clamp(0, 1).expand(-1, 3, -1, -1)


def thermal(x: Tensor) -> Tensor:
    heat = 1 - luminance(blur(x, 1.0))
    return ramp(heat, (0.05, 0.0, 0.25), (0.1, 0.25, 0.9), (0.1, 0.85, 0.45), (1.0, 0.9, 0.1), (0.95, 0.1, 0.05))


def negative(x: Tensor) -> Tensor:
    return 1 - x


def charcoal(x: Tensor) -> Tensor:
    tone = (luminance(blur(x, 0.8)) * 1.25 - 0.12).clamp(0, 1)
    grain = 0.22 * grain_texture(x, 3) * (1 - tone)
    return (0.12 + 0.72 * tone + grain - 0.4 * edges(x, 2)).clamp(0, 1).expand(-1, 3, -1, -1)


def watercolor(x: Tensor) -> Tensor:
    wash = blur(x, 1.6)
    rim = edges(wash, 3)
    return (0.3 + 0.7 * wash - 0.25 * rim + 0.03 * grain_texture(x, 4, 1.5)).clamp(0, 1)


def mosaic(x: Tensor) -> Tensor:
    row, column = grid(x)
    grout = ((row % 8 >= 7) | (column % 8 >= 7)).to(x)
    return pixelate(x, 8) * (1 - grout) * 0.95 + 0.25 * grout


def comic(x: Tensor) -> Tensor:
    """The style comic."""
    flat = (blur(x, 0.8) * 3).round() / 3
    row, column = grid(x)
    dots = (((row % 4 < 2) & (column % 4 < 2)).to(x)) * 0.18
    back = flat.new_tensor([0.45, 0.75, 1.0])[:, None, None]
    light = (luminance(flat) > 0.97).to(x)
    return ((flat * (1 - light) + back * light) * (1 - dots) * (1 - (edges(x, 5) > 0.6).to(x))).clamp(0, 1)


def stripes(x: Tensor) -> Tensor:
    row, column = grid(x)
    bar = ((row + column) % 8 < 4).to(x)
    return x * (1 - 0.55 * bar) + bar * 0.55 * x.new_tensor([0.95, 0.25, 0.2])[:, None, None]


def night(x: Tensor) -> Tensor:
    return x * x.new_tensor([0.12, 0.18, 0.42])[:, None, None] + 0.02


def gold(x: Tensor) -> Tensor:
    dx, dy = gradient(x)
    shine = (luminance(x) * 0.75 + 1.0 * (dx + dy)).clamp(0, 1)
    return ramp(shine, (0.14, 0.08, 0.0), (0.7, 0.45, 0.05), (1.0, 0.82, 0.25), (1.0, 0.98, 0.8))


def ice(x: Tensor) -> Tensor:
    return (ramp(luminance(x), (0.0, 0.25, 0.45), (0.35, 0.8, 0.9), (0.9, 1.0, 1.0)) + 0.3 * edges(x, 3)).clamp(0, 1)


def rose(x: Tensor) -> Tensor:
    return mix(luminance(x), (0.35, 0.0, 0.2), (1.0, 0.75, 0.85))


def stencil(x: Tensor) -> Tensor:
    cut = (8 * (luminance(blur(x, 0.6)) - 0.72) + 0.5).clamp(0, 1)
    return mix(cut, (0.08, 0.08, 0.08), (1.0, 0.52, 0.1))


def hatch(x: Tensor) -> Tensor:
    """The style hatch."""
    row, column = grid(x)
    dark = 1 - luminance(x)
    ink = ((row + column) % 4 < 1.5).to(x) * (dark > 0.15) + ((row - column) % 4 < 1.5).to(x) * (dark > 0.5)
    return mix((ink + edges(x, 3)).clamp(0, 1), (0.99, 0.97, 0.90), (0.15, 0.1, 0.3))


def screen(x: Tensor) -> Tensor:
    row, _ = grid(x)
    lit = torch.where(row % 3 < 2, 1.0, 0.25)
    return mix(luminance(x) * lit, (0.0, 0.06, 0.02), (0.35, 1.0, 0.45))


def dusk(x: Tensor) -> Tensor:
    return ramp(luminance(x), (0.18, 0.05, 0.35), (0.75, 0.25, 0.45), (1.0, 0.7, 0.35))


def glitch(x: Tensor) -> Tensor:
    return torch.stack([x[:, 0].roll(-4 * UNIT, -1), x[:, 1], x[:, 2].roll(4 * UNIT, -1)], 1)


def checker(x: Tensor) -> Tensor:
    row, column = grid(x)
    odd = (((row // 8) + (column // 8)) % 2).to(x)
    return odd * (1 - x) + (1 - odd) * x


def forest(x: Tensor) -> Tensor:
    return (mix(luminance(x), (0.02, 0.15, 0.05), (0.75, 0.95, 0.55)) - 0.35 * edges(x, 3)).clamp(0, 1)


def copper(x: Tensor) -> Tensor:
    dx, dy = gradient(x)
    return ramp((0.5 + 1.6 * (dx + dy)).clamp(0, 1), (0.12, 0.03, 0.0), (0.72, 0.38, 0.2), (1.0, 0.85, 0.7))


STYLES: dict[str, Style] = {
    f.__name__: f
    for f in (plain, sketch, blueprint, neon, pixel, sepia, halftone, oil, chalk, pop, emboss, thermal)
    + (negative, charcoal, watercolor, mosaic, comic, stripes, night, gold, ice, rose, stencil, hatch)
}
"""The 24 styles whose words a built-in base is pre-trained on."""

HELD_OUT_STYLES: dict[str, Style] = {f.__name__: f for f in (dusk, glitch, checker, forest, screen, copper)}
"""The 6 styles that no built-in base has seen; a caption calls each of them ``<s>``."""

ALL_STYLES = STYLES | HELD_OUT_STYLES
