"""A file as tools see it, a rule of a tool, and what the rule says of a key.

Letters: r rank.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..adapter import Header
from ..files.convention import HEADER, family_of
from ..files.peft import read_config, refusal
from ..files.reading import alpha_in, grouped, parse_all
from ..keys import Key, UnreadableKey, parse, printable
from ..linalg import is_finite

NAMES = {  # what Key.spelling stands for
    "kohya": "lora_unet_...",
    "original": "diffusion_model...",
    "diffusers": "unet... or transformer...",
    "processor": "...processor.to_q_lora...",
    "peft": "base_model.model...",
    "bare": "a bare path",
}


def _listed(spellings: tuple[str, ...]) -> str:
    return " and ".join(NAMES[spelling] for spelling in spellings)


class Verdict(NamedTuple):
    """What a tool does with one key."""

    key: str
    factor: float | None
    """The strength at which its layer is loaded, as a multiple of the right one: 1 is right, 0 not at all. None: not
    judged, the key is no plain LoRA's."""
    reason: str
    """Why it is not 1; "" where it is."""

    @property
    def state(self) -> str:
        """ "loaded", "ignored", "wrong strength" or "not judged"."""
        if self.factor is None:
            return "not judged"
        return "loaded" if abs(self.factor - 1) < 1e-3 else "wrong strength" if self.factor else "ignored"


@dataclass(frozen=True)
class File:
    """What tools look at in a file."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    path: Path = Path("adapter.safetensors")

    @cached_property
    def keys(self) -> dict[str, Key]:
        """The meanings of the keys that are a UNet's or transformer's."""
        found = {}
        for key in self.tensors:
            try:
                found[key] = parse(key)
            except UnreadableKey:
                continue
        return found

    @cached_property
    def family(self) -> str:
        """By header, metadata or names; else a UNet is taken for SDXL's, and a transformer without FLUX.1's single
        blocks for SD3's."""
        own = Header.from_json(self.metadata[HEADER]).family if HEADER in self.metadata else ""
        named = next((key.family for key in self.keys.values() if key.family), "")
        return own or family_of(self.metadata) or named or {"unet": "sdxl", "transformer": "sd3"}.get(self.part, "")

    @property
    def part(self) -> str:
        """ "unet", "transformer" or ""."""
        return next((key.part for key in self.keys.values()), "")

    @cached_property
    def ranks(self) -> dict[str, int]:
        """{name: r} of every name that has an A."""
        return {_name(key): len(self.tensors[key]) for key, meaning in self.keys.items() if meaning.kind == "A"}

    @cached_property
    def alphas(self) -> dict[str, float]:
        """{name: alpha} of the names that have one."""
        return {_name(key): float(self.tensors[key]) for key, meaning in self.keys.items() if meaning.kind == "alpha"}

    @cached_property
    def right(self) -> dict[str, float]:
        """{name: the strength that the file means}, as `files.load` reads it. Raises as load without a base."""
        groups, _ = grouped(self.path, self.tensors, self.metadata, parse_all(self.keys))
        return {_name(group.keys["A"]): group.scale for group in groups.values() if "A" in group.keys}

    def refuse_unsound(self) -> None:
        """Raises ValueError: the file is no update of the base, whatever its names, or holds numbers that no tool can
        use: NaN or infinity, factors that are no matrices."""
        for key, meaning in self.keys.items():
            x = self.tensors[key]
            if meaning.kind == "alpha":
                alpha_in(x, key)
            elif x.ndim < 2 or not x.numel():
                raise ValueError(f"{printable(key)}: needs a matrix, got {tuple(x.shape)}")
            elif x.is_floating_point() and not is_finite(x.float()):
                raise ValueError(f"{printable(key)}: holds NaN or infinity")
        start = read_config(self.path, self.keys, self.metadata, self.part).start
        if start:
            raise ValueError(refusal(start))

    def by_alpha(self, name: str) -> float:
        """alpha / r, or 1 without alpha: what most tools do."""
        return self.alphas.get(name, self.ranks[name]) / self.ranks[name]


def _nothing(file: File, key: str) -> str:
    return ""


def not_our_content(file: File) -> str:
    """Compact files and the authors' files: names that no tool knows."""
    kinds = {key.kind for key in file.keys.values()}
    return "" if kinds & {"A", "B"} or not kinds else "no tool knows these names, qrlora and its authors' code aside"


@dataclass(frozen=True)
class Rule:
    """What a tool does with files of one family."""

    spellings: tuple[str, ...]
    """The names that it knows, by keys.Key.spelling."""
    refuses: Callable[[File], str] = not_our_content
    """Why it loads nothing of a file at all; "" where it loads something."""
    ignores: Callable[[File, str], str] = _nothing
    """Why it passes over a key whose spelling it knows; "" where it loads it."""
    strength: Callable[[File, str], float] = File.by_alpha
    """At which strength it applies the layer of a name."""


def of_lora(file: File, rule: Rule, key: str) -> Verdict:
    """The verdict on a key that is a UNet's or transformer's."""
    name, spelling = _name(key), file.keys[key].spelling
    if spelling in rule.spellings:
        reason = rule.ignores(file, key) or ("" if name in file.ranks else "holds no pair A, B")
    else:
        reason = f"it does not know names such as {NAMES[spelling]}, only {_listed(rule.spellings)}"
    if reason:
        return Verdict(key, 0.0, reason)
    factor = rule.strength(file, name) / file.right[name] if file.right[name] else 1.0
    return Verdict(key, factor, "" if abs(factor - 1) < 1e-3 else "alpha is read differently from what the file means")


def _name(key: str) -> str:
    """A key without its ending."""
    for ending in (".weight", ".default", ".down", ".up", ".lora_down", ".lora_up", ".lora_A", ".lora_B", ".alpha"):
        key = key.removesuffix(ending)
    return key.removesuffix(".lora").removesuffix("_lora")
