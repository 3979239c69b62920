"""The shape of a backbone's record: what its layers are called in every public spelling, and who reads which.

A layer's name is its module's path in diffusers. The tables hold templates (templates.py), with the same numbers in the
same order on both sides. A flat name has underscores where a path has dots.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from .name_templates import Templates, filled

SWAPPED = "~"
"""Before a layer in a table: where it has two outputs for each input, its halves lie the other way round there."""
PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_", "base_model.model.", "diffusion_model.")
"""What tools put before a layer's name, beside the part's own name with a dot; what ends in "_" stands before flat
names."""
ORIGINAL_PREFIXES = ("lora_unet_", "diffusion_model.")
"""Those that stand before the original model's names; it counts where a layer has one name in both."""
UNLIMITED = 1 << 30


class Variant(NamedTuple):
    """One public model of a family."""

    hub: str
    """OWNER/NAME."""
    architecture: str
    """ModelSpec's name."""
    base_version: str
    """kohya's name (`ss_base_model_version`), by which A1111 sorts LoRAs."""
    words: tuple[str, ...] = ()
    """What the name of a base holds, all of them, if it is this model; small letters and digits alone."""
    width: int = 0
    """Inputs of the layers that `Layout.sized_by` names."""
    blocks: Mapping[str, int] = {}
    """Numbered blocks -> how many there are."""
    metadata: Mapping[str, str] = {}
    """What kohya's trainer writes into a file for this model and not for others."""
    licence: str = ""
    """By its usual name, and what it forbids."""
    billions: float = 0.0
    """Parameters of the trainable component, in billions."""
    card: int = 0
    """GB of the smallest graphics card that `qrlora estimate` finds enough for training it: nf4, activations
    recomputed."""
    good_for: str = ""
    """What people choose it for, in a few words."""


class Reader(NamedTuple):
    """What a tool's loader does with files of a family."""

    spellings: tuple[str, ...]
    """Those that it knows, as `Named.spelling`."""
    quirks: tuple[str, ...] = ()
    """What else decides whether it loads a layer: names of rows of compat.quirks.QUIRKS."""
    text_encoders: tuple[str, ...] | None = None
    """The beginnings of text encoders' keys that it loads; None: those of all its models."""


class Named(NamedTuple):
    """What a name in a file stands for."""

    layers: tuple[str, ...]
    """One layer, or those that the original model keeps in one, top to bottom."""
    spelling: str
    """Prefix and kind of the name: "lora_unet_{original}", "unet.{diffusers}", "unet.{processor}", "{diffusers}"."""


@dataclass(frozen=True)
class Layout:
    """A backbone's record: facts alone. No class derives from it."""

    family: str
    """The word in headers: "sdxl"."""
    component: str
    """The pipeline's trainable component: "unet" or "transformer"."""
    variants: Mapping[str, Variant]
    """Short name -> public model; the first one stands for a base of which nothing else is known."""
    example: str
    """The short name of the model for a person to start from."""
    names: Mapping[str, str]
    """A layer of the original model -> diffusers' one, or, with spaces between, those that lie in it, from the top."""
    targets: Mapping[str, tuple[str, ...]]
    """Preset -> endings of layer names."""
    written: Mapping[str, str]
    """Style of names that we write -> its spelling; the first is the one that most tools read."""
    tools: Mapping[str, Reader]
    """Tool -> what it does with the family's files; no row: it has no such models."""
    sized_by: tuple[str, ...] = (".to_q", ".to_k", ".to_v")
    """Endings of the layers whose inputs are a variant's width."""
    always_original: tuple[str, ...] = ()
    """Layers that we write under their original names in flat styles."""
    with_alpha: tuple[str, ...] = ()
    """Styles whose tools read no file without alpha keys."""
    outputs: Mapping[str, int] = field(default_factory=dict)
    """Outputs for each input of a layer that lies in one with others, by the last part of its name; else 1."""
    versions: tuple[str, ...] = ()
    """Beginnings of what tools write as `ss_base_model_version` or as ModelSpec's architecture."""
    look_alikes: tuple[str, ...] = ()
    """Beginnings of what they write there for other models, whose layers have the same names."""
    foreign_widths: tuple[int, ...] = ()
    """Widths of other models' blocks, whose layers have the same names."""
    gallery: str = ""
    """Beginning of `ss_base_model_version` without which A1111's gallery takes a file for another family's."""
    paper_presets: tuple[str, ...] = ()
    """The presets of targets that the paper's table 3 can mean."""

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What may stand before a layer's name, the longest first of those that begin alike; "" for a bare name."""
        own = f"{self.component}."
        return (*PREFIXES, f"{own}base_model.model.", own + own, own, "")

    def read(self, name: str) -> Named | None:
        """What a layer's name in any spelling, without its ending, stands for in this layout; None: for no layer of
        this backbone."""
        for prefix in self.prefixes:
            if name.startswith(prefix):
                found = (self._flat if prefix.endswith("_") else self._dotted).find(name.removeprefix(prefix))
                if found:
                    (layers, kind), numbers = found
                    of_both = "{original}" if prefix in ORIGINAL_PREFIXES else "{diffusers}"
                    return Named(tuple(filled(x, numbers) for x in layers), prefix + (kind or of_both))
        return None

    def spell(self, style: str, layer: str) -> tuple[str, tuple[str, ...]] | None:
        """The name of a layer in a style of this layout's `written`, without its ending, and all layers that go by that
        name; None: the style has no name for it that is read back as the same."""
        prefix, _, kind = self.written[style].partition("{")
        flat, path, together = prefix.endswith("_"), layer, (layer,)
        if kind == "original}" or (flat and layer in self.always_original):
            found = self._originals.find(layer)
            if not found:
                return None
            (original, layers), numbers = found
            path, together = filled(original, numbers), tuple(filled(x, numbers) for x in layers)
        name = prefix + (path.replace(".", "_") if flat else path)
        read = self.read(name)
        return (name, together) if read and read.layers == together else None

    def has_one_name(self, layer: str) -> bool:
        """Whether a layer is called the same in the original model and in diffusers."""
        found = self._originals.find(layer)
        return found is not None and filled(found[0][0], found[1]) == layer

    def is_swapped(self, layer: str, spelling: str) -> bool:
        """Whether the halves of a layer that has two outputs for each input lie the other way round in a spelling."""
        return spelling.endswith("{original}") and self._swapped.find(layer) is not None

    def heights(self, layers: Collection[str], inputs: int) -> dict[str, int]:
        """{layer: o} for layers of i inputs that lie in one."""
        return {layer: inputs * self.outputs.get(layer.rpartition(".")[2], 1) for layer in layers}

    def variant_of(self, base: str, width: int | None = None, layers: Collection[str] = ()) -> Variant:
        """The layout's variant, the public model that a base is or descends from, as far as the width of its blocks and
        its layers tell, and of several its name; the first one that they do not exclude."""
        plain = re.sub("[^a-z0-9]", "", base.lower())
        fitting = [x for x in self.variants.values() if _fits(x, width, layers)] or [*self.variants.values()]
        named = [x for x in fitting if x.words and all(word in plain for word in x.words)]
        return (sorted(named, key=lambda x: -sum(map(len, x.words))) or fitting)[0]

    def width_of(self, inputs: Mapping[str, int]) -> int | None:
        """The width that {layer: its inputs} tell, see `sized_by`; None: they tell none."""
        return next((i for layer, i in inputs.items() if layer.endswith(self.sized_by)), None)

    def has_size(self, width: int | None, layers: Collection[str]) -> bool:
        """Whether a public model of the family has this width and these numbered blocks."""
        return width is not None and any(_fits(x, width, layers) for x in self.variants.values())

    def has_last_blocks(self, width: int | None, layers: Collection[str]) -> bool:
        """Whether these layers reach to the last block, of each kind that they are in, of a public model."""
        last: dict[str, int] = {}
        for kind, number in _numbered_blocks(layers):
            last[kind] = max(number, last.get(kind, 0))
        fitting = (x for x in self.variants.values() if _fits(x, width, layers))
        return any(all(x.blocks.get(kind) == number + 1 for kind, number in last.items()) for x in fitting)

    @cached_property
    def _dotted(self) -> Templates[tuple[tuple[str, ...], str]]:
        """Paths, as the original model, diffusers and its old attention processors have them."""
        return Templates(self._rows())

    @cached_property
    def _flat(self) -> Templates[tuple[tuple[str, ...], str]]:
        """The same with underscores."""
        return Templates((path.replace(".", "_"), value) for path, value in self._rows())

    def _rows(self) -> Iterator[tuple[str, tuple[tuple[str, ...], str]]]:
        """All names of this layout's layers, as rows of templates."""
        for original, layers in self.names.items():
            yield original, (_plain(layers), "" if original == layers else "{original}")
        for layer in (x for layers in self.names.values() for x in _plain(layers)):
            yield layer, ((layer,), "{diffusers}")
            if old := re.fullmatch(r"(.+\.attn\d)\.(to_[qkv]|to_out)(?:\.0)?", layer):
                yield f"{old[1]}.processor.{old[2]}", ((layer,), "{processor}")

    @cached_property
    def _originals(self) -> Templates[tuple[str, tuple[str, ...]]]:
        """A layer of diffusers -> the original one, and all that lie in it."""
        rows = [(original, _plain(layers)) for original, layers in self.names.items()]
        return Templates((layer, (original, layers)) for original, layers in rows for layer in layers)

    @cached_property
    def _swapped(self) -> Templates[bool]:
        marked = (x for layers in self.names.values() for x in layers.split() if x.startswith(SWAPPED))
        return Templates((x.removeprefix(SWAPPED), True) for x in marked)


def names_within_blocks(original: str, ours: str, layers: Mapping[str, str]) -> dict[str, str]:
    """Rows of `Layout.names` for what lies in a block of the original model and in one of diffusers."""

    def placed(layer: str) -> str:
        mark = SWAPPED if layer.startswith(SWAPPED) else ""
        return f"{mark}{ours}.{layer.removeprefix(SWAPPED)}"

    return {f"{original}.{name}": " ".join(map(placed, found.split())) for name, found in layers.items()}


def _plain(layers: str) -> tuple[str, ...]:
    return tuple(x.removeprefix(SWAPPED) for x in layers.split())


def _fits(variant: Variant, width: int | None, layers: Collection[str]) -> bool:
    """Whether a model can be of this width and have these layers."""
    enough = all(number < variant.blocks.get(kind, UNLIMITED) for kind, number in _numbered_blocks(layers))
    return enough and width in (None, variant.width)


def _numbered_blocks(layers: Collection[str]) -> Iterator[tuple[str, int]]:
    """(kind, number) of the numbered block of each layer that is in one: "transformer_blocks.7.attn.to_q"."""
    for kind, _, rest in (layer.partition(".") for layer in layers):
        number = rest.partition(".")[0]
        if number.isdecimal():
            yield kind, int(number)
