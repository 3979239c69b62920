"""Random styles for pre-training.  They have no name: captions call each ``<s>``, which so comes to mean any style.

A random style maps a tone of the image (luminance, edges, relief ...) to colours, or mixes or shifts its colour
channels (a *look*); it may overlay a pattern, or let a pattern select between two looks.  The held-out styles stay
unseen: a sample nearer to one of them than the nearest named style is rejected, see `random_style`.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Generator, Tensor

from .drawings import known_contents
from .ground_truth import true_images
from .styles import (
    HELD_OUT_STYLES,
    STYLES,
    UNIT,
    Style,
    blur,
    edges,
    gradient,
    grain_texture,
    grid,
    luminance,
    pixelate,
    ramp,
)

MIN_VARIANCE = 0.006
"""Variance of a pixel in 0..1 over different drawings, below which a style hides the content."""


def random_style(generator: Generator, device: str = "cpu") -> Style:
    """A style from a generator: one look, two looks that a pattern selects between, or a look under a pattern.

    Contents stay legible in it, and it is never nearer to a held-out style, by the mean squared difference on a few
    drawings, than the nearest of `STYLES` is.  Args: device: where that is tested.
    """
    while True:
        draw = _uniform(generator)
        kind = draw()
        if kind < 0.45:
            style = _random_look(draw, generator)
        elif kind < 0.65:
            first = _random_look(draw, generator)
            second = _negative(first) if draw() < 0.3 else _random_look(draw, generator)
            style = _masked_mix(first, second, _random_pattern(draw, generator))
        else:
            style = _overprinted(_random_look(draw, generator), _random_pattern(draw, generator), draw)
        if _is_legible_and_not_held_out(style, device):
            return style


def _uniform(generator: Generator) -> Callable[..., float]:
    """(low, high) -> a uniform random number."""
    return lambda low=0.0, high=1.0: low + (high - low) * float(torch.rand((), generator=generator))


def _random_option(draw: Callable[..., float], options: Sequence[Style]) -> Style:
    return options[min(int(draw() * len(options)), len(options) - 1)]


def _tone_functions(draw: Callable[..., float]) -> list[Style]:
    """Grey-scale functions that random styles are made of: (b, 3, h, w) -> (b, 1, h, w) in 0..1."""
    gain, sigma, levels, size = draw(2, 5), draw(0.6, 1.8), int(draw(3, 6)), 2 ** int(draw(1, 4))
    cut, slope = draw(0.4, 0.8), draw(3, 9)
    return [
        luminance,
        luminance,
        lambda x: 1 - edges(x, gain),
        lambda x: (0.5 + 0.4 * gain * torch.cat(gradient(x), 1).sum(1, keepdim=True)).clamp(0, 1),
        lambda x: luminance(blur(x, sigma)),
        lambda x: (luminance(x) * (levels - 0.01)).floor() / (levels - 1),
        lambda x: luminance(pixelate(x, size)),
        lambda x: (slope * (luminance(blur(x, 0.6)) - cut) + 0.5).clamp(0, 1),
    ]


def _random_look(draw: Callable[..., float], generator: Generator) -> Style:
    """A random style's look: a colour map of a tone, or a mix or shift of the colour channels."""
    ink, gain, kind = draw(-0.6, 0.6) if draw() < 0.3 else 0.0, draw(2, 5), draw()
    if kind < 0.15:
        return _misprint(draw, generator)
    if kind < 0.75:
        tone = _random_option(draw, _tone_functions(draw))
        # dark to light or light to dark, so that a drawing stays legible
        colours = torch.rand(int(draw(2, 5)), 3, generator=generator)
        colours = colours[colours.sum(1).argsort(descending=draw() < 0.25)]
        stops = [tuple(c) for c in colours.tolist()]
        return lambda x: (ramp(tone(x), *stops) + ink * edges(x, gain)).clamp(0, 1)  # type: ignore[arg-type]
    mixing = torch.eye(3) + 0.5 * torch.randn(3, 3, generator=generator)
    shift = 0.2 * torch.randn(3, generator=generator)[:, None, None]
    turned = draw() < 0.3

    def own(x: Tensor) -> Tensor:
        mixed = torch.einsum("oc,bchw->bohw", mixing.to(x), (1 - x) if turned else x) + shift.to(x)
        return (mixed + ink * edges(x, gain)).clamp(0, 1)

    return own


def _misprint(draw: Callable[..., float], generator: Generator) -> Style:
    """A random style's misprint: red, green and blue printed apart, up to five units each, perhaps faded or in other
    inks."""
    shifts = (UNIT * torch.randint(-5, 6, (3, 2), generator=generator)).tolist()
    gain, order = draw(0.6, 1.0), torch.randperm(3, generator=generator).tolist()

    def apart(x: Tensor) -> Tensor:
        inks = [x[:, channel].roll(tuple(shift), (-2, -1)) for channel, shift in zip(order, shifts, strict=True)]
        return 1 - gain * (1 - torch.stack(inks, 1))

    return apart


def _negative(look: Style) -> Style:
    return lambda x: 1 - look(x)


def _random_pattern(draw: Callable[..., float], generator: Generator) -> Style:
    """A random style's texture that does not depend on the image: (b, 3, h, w) -> (1, 1, h, w) or (h, w) in 0..1."""
    period, duty, angle = draw(2.5, 16), draw(0.3, 0.7), draw(0, math.pi)
    seed, sigma = int(draw(0, 2**20)), draw(0.6, 2.5)
    turn = (math.cos(angle), math.sin(angle)) if draw() < 0.5 else (float(angle > 1.57), float(angle <= 1.57))

    def phases(x: Tensor) -> tuple[Tensor, Tensor]:
        row, column = grid(x)
        return (row * turn[0] + column * turn[1]) / period % 1, (row * turn[1] - column * turn[0]) / period % 1

    def lines(x: Tensor) -> Tensor:
        return (phases(x)[0] < duty).to(x)

    def net(x: Tensor) -> Tensor:
        across, along = phases(x)
        return ((across < 0.2) | (along < 0.2)).to(x)

    def dots(x: Tensor) -> Tensor:
        across, along = phases(x)
        return (((across - 0.5) ** 2 + (along - 0.5) ** 2) < (0.5 * duty) ** 2).to(x)

    def squares(x: Tensor) -> Tensor:
        across, along = phases(x)
        return ((across < 0.5) ^ (along < 0.5)).to(x)

    def waves(x: Tensor) -> Tensor:
        across, along = phases(x)
        return 0.5 + 0.25 * (torch.cos(2 * math.pi * across) + torch.cos(2 * math.pi * along))

    def grain(x: Tensor) -> Tensor:
        return (0.5 + 0.35 * grain_texture(x, seed, sigma)).clamp(0, 1)

    return _random_option(draw, [lines, lines, net, dots, squares, waves, grain])


def _masked_mix(first: Style, second: Style, pattern: Style) -> Style:
    """One look where the pattern is 1, another where it is 0."""
    return lambda x: second(x) + pattern(x) * (first(x) - second(x))


def _overprinted(look: Style, pattern: Style, draw: Callable[..., float]) -> Style:
    """A random style that prints a pattern of one colour over a look, or as wide as the look is dark, like ink."""
    colour, strength = [draw(), draw(), draw()], draw(0.2, 0.8)
    if draw() < 0.3:  # a screened print: more of the pattern where the image is darker
        sharp = draw(3, 8)

        def screened(x: Tensor) -> Tensor:
            amount = (sharp * (1 - luminance(x) - pattern(x)) + 0.5).clamp(0, 1)
            return look(x) + strength * amount * (x.new_tensor(colour)[:, None, None] - look(x))

        return screened
    return lambda x: look(x) + strength * pattern(x) * (x.new_tensor(colour)[:, None, None] - look(x))


@cache
def _held_out_probes(device: str) -> tuple[Tensor, Tensor, Tensor]:
    """To keep random styles from held-out ones: a few drawings, their images in each held-out style, and the distance
    from each to the nearest named style."""
    drawings = true_images(known_contents()[::50]).to(device)
    hidden = torch.stack([style(drawings) for style in HELD_OUT_STYLES.values()])
    worded = torch.stack([style(drawings).clamp(0, 1) for style in STYLES.values()])
    return drawings, hidden, (hidden[:, None] - worded[None]).square().flatten(2).mean(2).amin(1)


def _is_legible_and_not_held_out(style: Style, device: str) -> bool:
    """Whether a random style leaves drawings legible, and is far from every held-out style."""
    drawings, hidden, nearest = _held_out_probes(device)
    images = style(drawings).clamp(0, 1)
    legible = images.var(0).mean() > MIN_VARIANCE
    return bool(legible and ((hidden - images).square().flatten(1).mean(1) > nearest).all())
