"""The words of a command line as values: recipes, settings, files with strengths, lists of numbers."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import SampleConfig
from ..config.type_checks import check_strengths
from . import usage_hints


def recipe_and_settings(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The arguments of `train` as its one recipe and the others, NAME=VALUE each. Raises ValueError: anything else."""
    recipes = [x for x in words if x.lower().endswith(".toml") and ("=" not in x or os.path.isfile(x))]
    settings = [x for x in words if x not in recipes]
    usage_hints.check_settings(settings)
    if len(recipes) > 1:
        raise ValueError(f"one recipe at a time, got {', '.join(recipes)}")
    return recipes[0] if recipes else None, settings


def files_with_strengths(
    adapters: Sequence[str], verb: Callable[..., Any], output: Path | None = None
) -> tuple[list[str], list[float]]:
    """Arguments FILE or FILE=STRENGTH each; a name that exists as it stands is a file, whatever signs it holds.

    Args:   output: where the verb writes, if its output may have been given as the last of the files.
    Raises: ValueError: a strength that is no number; words that a person puts in that place by mistake.
    """
    usage_hints.check_adapters(adapters, verb, output)
    paths, strengths = [], []
    for text in adapters:
        path, equals, strength = (text, "", "1") if os.path.exists(text) else text.rpartition("=")
        paths.append(path if equals else text)
        strengths.extend(parse_strengths(strength) if equals else [1.0])
    return paths, strengths


def parse_strengths(text: str) -> list[float]:
    """The argument "0,0.5,1" as numbers. Raises ValueError with the text, or for a strength that is none."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"strengths are numbers with commas between, such as 0,0.5,1; got {text!r}") from None
    check_strengths(found)
    return found


def check_basis_options(rank: int | None, side: str) -> None:
    """Raises ValueError: no rank or side of a basis, before a base is opened for it."""
    if rank is not None and rank < 1:
        raise ValueError(f"--rank must be 1 or more, got {rank}")
    if side not in ("input", "output"):
        raise ValueError(f"--side must be input or output, got {side!r}")


def sample_config(options: Mapping[str, Any], **more: Any) -> SampleConfig:
    """The settings of sampling from the arguments and options of a verb, by their names, and what is not one of them.

    Args:   options: the verb's, with whatever else it has.
    Raises: ValueError: a setting that cannot be.
    """
    own = {field.name for field in dataclasses.fields(SampleConfig)}
    return SampleConfig(**{**{name: value for name, value in options.items() if name in own}, **more})
