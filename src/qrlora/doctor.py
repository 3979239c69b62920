"""What `qrlora doctor` prints: versions, device, dtype, cache, optional dependencies, and what is wrong with them.

Made to be pasted into an issue; works with the core's dependencies alone.
"""

import importlib.metadata
import platform
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from . import __version__, optional_dependencies

EXTRAS = (
    "cli",
    "plots",
    "diffusers",
    "peft",
    "quantize",
    "optimizers",
    "tensorboard",
    "ray",
    "studio",
    "survey",
    "postgres",
)
"""The extras that a user installs, in the order of the report."""


def doctor_report() -> str:
    """The whole report of `qrlora doctor` as lines "name: value", problems last, with the command that mends each."""
    lines = [f"{name}: {value}" for name, value in installed_facts()]
    found = list(found_problems())
    return "\n".join([*lines, *(f"problem: {text}" for text in found), *(["problems: none"] if not found else [])])


def installed_facts() -> Iterator[tuple[str, str]]:
    """(name, value) for the doctor's report: what is installed and what this machine is."""
    yield "qrlora", f"{__version__} in {Path(__file__).parent}"
    yield "python", f"{platform.python_version()} in {sys.prefix}"
    yield "system", f"{platform.system()} {platform.release()} {platform.machine()}"
    yield from _machine()
    yield from _bases()
    yield "core", _versions(optional_dependencies.requirements_of_extra(""))
    for extra in EXTRAS:
        yield f"qrlora[{extra}]", _versions(optional_dependencies.requirements_of_extra(extra))


def found_problems() -> Iterator[str]:
    """The doctor's problems: what will make commands fail or be slow, each in one line with the way out."""
    if not list(optional_dependencies.requirements_of_extra("")):
        yield "qrlora runs from a folder and is not installed, its extras cannot be checked: pip install -e FOLDER"
    for name, places in duplicate_distributions().items():
        yield f"{name} is installed {len(places)} times, the first is used: {'; '.join(places)}; remove one"
    for extra, reason in (("cli", "every command but doctor"), ("diffusers", "each of train, generate, grid, demo")):
        if hint := optional_dependencies.missing_extra_hint(extra, reason=reason):
            yield hint
    if hint := _hidden_gpu():
        yield hint


def duplicate_distributions() -> dict[str, list[str]]:
    """{distribution: its "version in folder"} of what this package needs and is there in several folders of the path,
    in the order in which Python looks."""
    found: dict[str, list[str]] = defaultdict(list)
    for distribution in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        place = f"{distribution.version} in {distribution.locate_file('')}"
        if place not in found[name]:
            found[name].append(place)
    ours = {
        "qrlora",
        "qrlora-bases",
        *(name for extra in ("", *EXTRAS) for name, _ in optional_dependencies.requirements_of_extra(extra)),
    }
    return {name: found[name] for name in sorted(ours) if len(found.get(name, ())) > 1}


def _versions(requirements: Iterator[tuple[str, str]]) -> str:
    """A line of the doctor's report, "typer 0.29.2, rich missing", of an extra's distributions."""
    return (
        ", ".join(f"{name} {optional_dependencies.version_of(name) or 'missing'}" for name, _ in requirements)
        or "unknown"
    )


def _machine() -> Iterator[tuple[str, str]]:
    """The doctor's lines on this machine: torch, the devices that it sees, the dtype of bases on the one that is
    chosen, the folder of the cache."""
    import torch

    from . import basis, devices

    device = devices.choose_device("auto")
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    yield "torch", f"{torch.__version__}, {built if torch.version.cuda or torch.version.hip else 'no CUDA or ROCm'}"
    gpus = [devices.device_label(torch.device("cuda", k)) for k in range(torch.cuda.device_count())]
    yield "gpus", ", ".join(gpus) or "none seen by torch"
    yield "device", f"{devices.device_label(device)}, {torch.get_num_threads()} threads"
    yield "dtype", str(devices.choose_dtype("auto", device)).removeprefix("torch.")
    yield "cache", str(basis.cache_folder())


def _bases() -> Iterator[tuple[str, str]]:
    from .built_in_bases import built_in_bases

    yield "built-in bases", ", ".join(built_in_bases()) or "none"


def _hidden_gpu() -> str:
    """The doctor's advice to a person with an NVIDIA GPU whose torch cannot use it; "" elsewhere."""
    import torch

    from . import devices

    driver = Path("/proc/driver/nvidia/version").exists() or Path(r"C:\Windows\System32\nvcuda.dll").exists()
    if not driver or torch.cuda.is_available():
        return ""
    return f"there is an NVIDIA GPU, and {devices.gpu_hint()}"
