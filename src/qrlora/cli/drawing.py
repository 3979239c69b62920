"""What `qrlora generate` and `qrlora grid` do: try the output, open a base, draw, write."""

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .. import output_files, plots, sampling
from ..adapter import Adapter
from ..config import SampleConfig, as_dict
from ..families import Base, adapter_compatibility, open_base
from ..merging.roles import doubts, swapped
from . import console, filing


class Leave(NamedTuple):
    """What a person asks to be let through."""

    skip_text_encoders: bool = False
    """Files' layers of text encoders are left out."""
    any_prompt: bool = False
    """A prompt without a trigger word is warned of, not refused."""


STRICT = Leave()


def generate(config: SampleConfig, leave: Leave = STRICT) -> None:
    """Draw `count` pictures: one file, or a sheet and each picture beside it.

    Raises: ValueError, OSError: a bad file, base or setting; a trigger word missing in the prompt; see `_written`.
    """
    seeds = [config.seed + k for k in range(config.count)]
    plots.picture_format(config.output)
    if config.count > 1:
        plots.figure_format(config.output)
    _try_output(config, seeds)
    config, base, adapters = _opened(config, leave)
    applied = list(zip(adapters, config.strengths, strict=True))
    with console.progress("drawing") as bar:
        way = {"count": config.count, "on_picture": bar.step}
        pictures = sampling.generate(base, config.prompt, applied, **_common(config, leave), **way)
    made_with = json.dumps(as_dict(config))

    def write(output: Path) -> None:
        if len(pictures) == 1:
            plots.save_picture(pictures[0], output, made_with, config.overwrite)
            return
        for picture, path in zip(pictures, _singles(output, seeds), strict=True):
            plots.save_picture(picture, path, made_with, config.overwrite)
        panels = [plots.Panel("", [p], [f"seed {s}"]) for p, s in zip(pictures, seeds, strict=True)]
        figure = plots.sheet(panels, min(4, len(panels)), title=config.prompt, footer=_footer(config))
        plots.save(figure, output, config.overwrite)

    console.say(str(_written(write, config, seeds)))


def grid(
    config: SampleConfig, content_strengths: Sequence[float], style_strengths: Sequence[float], leave: Leave = STRICT
) -> None:
    """Draw the picture of each pair of strengths into one captioned plot.

    Args:   config: its adapters are the content's and the style's file.
    Raises: as `generate`.
    """
    plots.figure_format(config.output)
    _try_output(config)
    config, base, (content, style) = _opened(config, leave)
    if doubt := swapped(content.header, style.header):
        console.warn(doubt)
    with console.progress("drawing") as bar:
        strengths = (content_strengths, style_strengths)
        pictures = sampling.grid(
            base, config.prompt, content, style, *strengths, **_common(config, leave), on_picture=bar.step
        )
    figure = plots.strength_grid(pictures, *strengths, config.prompt, _footer(config))
    console.say(str(_written(lambda output: plots.save(figure, output, config.overwrite), config)))


def _singles(output: Path, seeds: Sequence[int]) -> list[Path]:
    """Where the pictures of a sheet lie, beside it."""
    return [output.with_stem(f"{output.stem}-{seed}") for seed in seeds] if len(seeds) > 1 else []


def _free(config: SampleConfig, seeds: Sequence[int]) -> Path:
    """The output, under the next number if one of its files is there and may not be replaced; a folder is refused."""
    output = Path(config.output)
    return output if config.overwrite or output.is_dir() else output_files.numbered(output, _taken(seeds))


def _taken(seeds: Sequence[int]) -> Callable[[Path], bool]:
    return lambda output: any(map(os.path.lexists, (output, *_singles(output, seeds))))


def _try_output(config: SampleConfig, seeds: Sequence[int] = ()) -> None:
    """Raises OSError: what will be drawn could not be written."""
    output = _free(config, seeds)
    for path in (output, *_singles(output, seeds)[-1:]):
        output_files.check(path, config.overwrite)


def _written(write: Callable[[Path], object], config: SampleConfig, seeds: Sequence[int] = ()) -> Path:
    """Where what was drawn lies.

    Raises: OSError: it could not be written there; it is in the folder for temporary files, as the message says.
    """
    output = _free(config, seeds)
    output_files.rescued(write, output, [Path(tempfile.gettempdir())], _taken(seeds))
    return output


def _opened(config: SampleConfig, leave: Leave) -> tuple[SampleConfig, Base, list[Adapter]]:
    """The config with nothing left open, its base and its adapters."""
    adapters = [filing.read(path, leave.skip_text_encoders) for path in config.adapters]
    acting = [(adapter, x) for adapter, x in zip(adapters, config.strengths, strict=True) if x]
    missing = sampling.missing_triggers([config.prompt], acting) if leave.any_prompt else []
    for doubt in (*missing, *doubts([adapter.header for adapter, _ in acting])):
        console.warn(doubt)
    config = dataclasses.replace(config, base=config.base or _base_of(adapters))
    how = (config.device, config.dtype, config.quantize, config.offload, config.revision)
    base = open_base(config.base, *how)
    for adapter in adapters:
        adapter_compatibility.check(base, adapter)
        if doubt := adapter_compatibility.unlike(base, adapter):
            console.warn(doubt)
    return config.filled(base.defaults), base, adapters


def _common(config: SampleConfig, leave: Leave) -> dict[str, Any]:
    names = ("negative_prompt", "seed", "steps", "guidance", "size")
    return {"check_triggers": not leave.any_prompt, **{name: getattr(config, name) for name in names}}


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
