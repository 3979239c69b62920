"""What `qrlora generate` and `qrlora grid` do: open a base, draw, write."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import files, plots, sampling
from ..adapter import Adapter
from ..config import SampleConfig, as_dict
from ..families import Base, open_base
from . import console


def generate(config: SampleConfig) -> None:
    """Draw `count` pictures: one file, or a sheet and each picture beside it.

    Raises: ValueError, OSError: a bad file, base or setting; a trigger word missing in the prompt.
    """
    config, base, adapters = _opened(config)
    worn = list(zip(adapters, config.strengths, strict=True))
    with console.progress("drawing") as bar:
        way = {"count": config.count, "on_picture": bar.step}
        pictures = sampling.generate(base, config.prompt, worn, **_common(config), **way)
    output, made_with = Path(config.output), json.dumps(as_dict(config))
    if len(pictures) == 1:
        plots.save_picture(pictures[0], output, made_with)
    else:
        seeds = [config.seed + k for k in range(len(pictures))]
        for seed, picture in zip(seeds, pictures, strict=True):
            plots.save_picture(picture, output.with_stem(f"{output.stem}-{seed}"), made_with)
        panels = [plots.Panel("", [p], [f"seed {s}"]) for p, s in zip(pictures, seeds, strict=True)]
        plots.save(plots.sheet(panels, min(4, len(panels)), title=config.prompt, footer=_footer(config)), output)
    console.say(str(output))


def grid(config: SampleConfig, content_strengths: Sequence[float], style_strengths: Sequence[float]) -> None:
    """Draw the picture of each pair of strengths into one captioned plot.

    Args:   config: its adapters are the content's and the style's file.
    Raises: as `generate`.
    """
    config, base, (content, style) = _opened(config)
    with console.progress("drawing") as bar:
        strengths = (content_strengths, style_strengths)
        pictures = sampling.grid(
            base, config.prompt, content, style, *strengths, **_common(config), on_picture=bar.step
        )
    plots.save(plots.strength_grid(pictures, *strengths, config.prompt, _footer(config)), config.output)
    console.say(str(config.output))


def _opened(config: SampleConfig) -> tuple[SampleConfig, Base, list[Adapter]]:
    """The config with nothing left open, its base and its adapters."""
    adapters = [files.load(path) for path in config.adapters]
    config = dataclasses.replace(config, base=config.base or _base_of(adapters))
    base = open_base(config.base, config.device, config.dtype, config.quantize, config.offload)
    return config.filled(base.defaults), base, adapters


def _common(config: SampleConfig) -> dict[str, Any]:
    names = ("negative_prompt", "seed", "steps", "guidance", "size")
    return {name: getattr(config, name) for name in names}


def _base_of(adapters: Sequence[Adapter]) -> str:
    """The base that the adapters were made for; the built-in one without adapters.

    Raises: ValueError: they name different bases, or none.
    """
    names = sorted({adapter.header.base for adapter in adapters})
    if not adapters:
        return SampleConfig.base
    if len(names) > 1 or not names[0]:
        found = ", ".join(name or "none" for name in names)
        raise ValueError(f"the adapters' files name these base models: {found}; choose one with --base")
    return names[0]


def _footer(config: SampleConfig) -> str:
    """What a plot was made with, in one line."""
    names = " + ".join(Path(path).stem for path in config.adapters) or "no adapter"
    strengths = f" at {', '.join(f'{x:g}' for x in config.strengths)}" if set(config.strengths) - {1.0} else ""
    way = f"{config.steps} steps, guidance {config.guidance:g}, seed {config.seed}"
    return f"{names}{strengths} on {config.base}, {way}"
