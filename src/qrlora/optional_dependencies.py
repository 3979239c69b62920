"""Optional dependencies: which extra a module of this package needs, and the one line that says how to install it.

The core (adapters, merging, files, bases' directions, other people's trainers) needs torch, numpy, safetensors and
platformdirs alone, so that it goes into an environment that pins other libraries. Everything else asks here: importing
a module of `NEEDS` checks its extra first, by the bounds of this package's own metadata.
"""

import importlib.abc
import re
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec

NEEDS = {
    "plots": "plots",
    "image_loading": "plots",
    "filtered_images": "plots",
    "training_example": "plots",
    "families": "diffusers",
    "training": "diffusers",
    "sampling": "diffusers",
    "sampling_batches": "diffusers",
    "contrastive_directions": "diffusers",
    "baselines": "diffusers",
    "world": "diffusers",
    "estimate": "diffusers",
    "evaluation": "diffusers",
    "comparison.contact_sheet": "plots",
    "comparison.crossed_adapters": "diffusers",
    "comparison.crossed_forgetting": "diffusers",
    "comparison.crossed_fusion": "diffusers",
    "comparison.decomposition": "diffusers",
    "comparison.known_word_scale": "diffusers",
    "comparison.measure_agreement": "diffusers",
    "comparison.measured_examples": "diffusers",
    "comparison.run_job": "diffusers",
    "comparison.three_attributes": "diffusers",
    "comparison.two_adapters": "diffusers",
    "comparison.weak_adapter": "diffusers",
    "reproduction": "diffusers",
    "trainers.freeze_lora": "trainers",
    "trainers.peft": "peft",
    "web": "web",
    "survey": "survey",
    "studio": "studio",
}
"""Module or package of qrlora -> the extra without which it is of no use. What needs a library only for some setting
calls `require` there."""


class MissingExtra(ImportError, ValueError):
    """An optional dependency is absent or too old; the message is one line with the command that installs it."""


def require(extra: str, *names: str, reason: str = "") -> None:
    """Check that an extra of this package is installed.

    Args:   names: the distributions of it that matter here; none: all.
            reason: what asks for it, such as "optimizer=prodigy"; empty: the extra's name.
    Raises: MissingExtra: one of them is absent, or older than this package's bound.
    """
    if text := missing_extra_hint(extra, *names, reason=reason):
        raise MissingExtra(text)


def missing_extra_hint(extra: str, *names: str, reason: str = "") -> str:
    """The message with which `require` would raise for an optional dependency, "" if it would not."""
    lacking = list(_lacking_of_extra(extra, names))
    if not lacking:
        return ""
    command = f'pip install "qrlora[{extra}]"'
    if any("installed" in text for text in lacking):
        command += " (in an environment of its own if something here pins the older one)"
    return f"{reason or f'qrlora[{extra}]'} needs {', '.join(lacking)}: {command}"


def requirements_of_extra(extra: str) -> Iterator[tuple[str, str]]:
    """(distribution, lower bound or "") of an extra and of the extras in it, of the core for "", by this package's
    metadata; nothing where the package is used from a folder without being installed. Raises ValueError: no such extra.
    """
    import importlib.metadata  # not above: reading metadata costs more than `import qrlora`

    try:
        declared = importlib.metadata.requires("qrlora") or []
        known = importlib.metadata.metadata("qrlora").get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        return
    if extra and extra not in known:
        raise ValueError(f"qrlora has no extra {extra!r}, it has {', '.join(sorted(known))}; install it anew")
    for line in declared:
        requirement, _, marker = line.partition(";")
        if (found := re.search(r"extra == ['\"]([\w-]+)['\"]", marker)) and found[1] != extra or extra and not found:
            continue
        if inner := re.match(r"qrlora\[([\w,-]+)\]", requirement):
            for name in inner[1].split(","):
                yield from requirements_of_extra(name)
        elif found := re.match(r"([\w.-]+)(?:\[[^]]*\])?\s*(?:>=\s*([\w.]+))?", requirement):
            yield found[1], found[2] or ""


def version_of(name: str) -> str:
    """The version of a distribution that may be installed, "" if it is not."""
    import importlib.metadata

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _lacking_of_extra(extra: str, names: Sequence[str]) -> Iterator[str]:
    """What of an extra's distributions is absent or too old, in words."""
    bounds = dict(requirements_of_extra(extra))
    for name in names or bounds:
        bound, version = bounds.get(name, ""), version_of(name)
        if not version:
            yield name
        elif _release_numbers(version) < _release_numbers(bound):
            yield f"{name}>={bound} ({version} is installed)"


def _release_numbers(version: str) -> tuple[int, ...]:
    """A distribution's release as numbers: "0.37.0.dev0" is (0, 37), zeros at the end do not count."""
    release = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(x) for x in release[0].split(".")] if release else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


class MissingExtraFinder(importlib.abc.MetaPathFinder):
    """Asked by Python before a module of `NEEDS` is looked for; finds nothing itself."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        """Check the extra of a module of this package before it is imported."""
        package, _, module = fullname.partition(".")
        if package == "qrlora" and module in NEEDS:
            require(NEEDS[module], reason=fullname)
        return None
