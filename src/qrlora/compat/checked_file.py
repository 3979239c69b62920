"""A LoRA file that is checked for tools, and the verdict on each of its keys.

Letters: r rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..adapter import Header
from ..files.layer_names import Key, Names, factors_of, understand_names
from ..files.load_adapter import alpha_of_tensor, group_keys_by_layer
from ..files.peft_config import read_peft_config, refusal
from ..files.written_metadata import HEADER
from ..layouts import Layout
from ..linalg import is_finite
from ..lora_keys import printable


class Verdict(NamedTuple):
    """What a tool does with one key."""

    key: str
    factor: float | None
    """The strength at which its layer is loaded, as a multiple of the right one: 1 is right, 0 not at all. None: not
    judged, nobody knows."""
    reason: str
    """Why it is not 1; "" where it is."""

    @property
    def state(self) -> str:
        """The verdict on a key: "loaded", "ignored", "wrong strength" or "not judged"."""
        if self.factor is None:
            return "not judged"
        return "loaded" if abs(self.factor - 1) < 1e-3 else "wrong strength" if self.factor else "ignored"


@dataclass(frozen=True)
class CheckedFile:
    """What tools look at in a file."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    path: Path = Path("adapter.safetensors")

    @cached_property
    def names(self) -> Names:
        """What the keys of the checked file mean that are a UNet's or transformer's, judged together."""
        factors, _ = factors_of(self.tensors)
        header = Header.from_json(self.metadata[HEADER]) if HEADER in self.metadata else None
        return understand_names(factors, self.tensors, self.metadata, header) if factors else Names(None, "", {})

    @property
    def keys(self) -> Mapping[str, Key]:
        """Their meanings."""
        return self.names.keys

    @property
    def layout(self) -> Layout | None:
        """The backbone; None: unknown."""
        return self.names.layout

    @property
    def component(self) -> str:
        """ "unet", "transformer" or ""."""
        return self.names.component

    @cached_property
    def ranks(self) -> dict[str, int]:
        """{name: r} of every name that has an A."""
        return {x.factor.name: len(self.tensors[key]) for key, x in self.keys.items() if x.factor.kind == "A"}

    @cached_property
    def alphas(self) -> dict[str, float]:
        """{name: alpha} of the names that have one."""
        return {x.factor.name: float(self.tensors[key]) for key, x in self.keys.items() if x.factor.kind == "alpha"}

    @cached_property
    def right(self) -> dict[str, float]:
        """{name: the strength that the file means}, as `files.load` reads it. Raises as load without a base."""
        groups, _ = group_keys_by_layer(self.path, self.tensors, self.metadata, self.names)
        return {self.keys[x.keys["A"]].factor.name: x.scale for x in groups.values() if "A" in x.keys}

    def refuse_unsound(self) -> None:
        """Raises ValueError: the checked file is no update of the base, whatever its names, or holds numbers that no
        tool can use: NaN or infinity, factors that are no matrices."""
        for key, meaning in self.keys.items():
            x = self.tensors[key]
            if meaning.factor.kind == "alpha":
                alpha_of_tensor(x, key)
            elif x.ndim < 2 or not x.numel():
                raise ValueError(f"{printable(key)}: needs a matrix, got {tuple(x.shape)}")
            elif x.is_floating_point() and not is_finite(x.float()):
                raise ValueError(f"{printable(key)}: holds NaN or infinity")
        start = read_peft_config(self.path, self.keys, self.metadata, self.component).start
        if start:
            raise ValueError(refusal(start))

    def by_alpha(self, name: str) -> float:
        """alpha / r, or 1 without alpha: what most tools do."""
        return self.alphas.get(name, self.ranks[name]) / self.ranks[name]
