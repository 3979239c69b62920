"""Understand the layer names in a LoRA file: which backbone the whole file is of, and which layers they are.

A file is of a backbone if all of its names are. Where no backbone has them all, every name stays as it is: such a file
can be read, merged and written back, and is converted to nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ..adapter import Header
from ..layouts import LAYOUTS, Layout, excluded, layout_of_metadata, layouts_of
from ..lora_keys import PEFT_PREFIX, Factor, UnreadableKey, factor_of, is_text_encoder, natural, printable

PARTS = ("unet", "transformer")
VERBATIM = "{unknown}"
"""The spelling of a name that is kept as it is."""


@dataclass(frozen=True)
class Key:
    """What a key of a file means."""

    factor: Factor
    layers: tuple[str, ...]
    """The layers that it belongs to: one, or those that the original model keeps in one, top to bottom."""
    spelling: str
    """As layouts.Named.spelling; VERBATIM for a name that no backbone has."""


@dataclass(frozen=True)
class Names:
    """What all names of a file mean."""

    layout: Layout | None
    """The backbone; None: unknown."""
    component: str
    """"unet", "transformer", or "" where no name says so."""
    keys: Mapping[str, Key]
    endings: str = ""
    """Of A, B and alpha, where they have to stay as they are (Header.endings)."""


def factors_of(keys: Iterable[str]) -> tuple[dict[str, Factor], dict[str, list[str]]]:
    """{key: layer name, factor and ending} of a plain LoRA's keys, and {why not: keys} of the rest."""
    found: dict[str, Factor] = {}
    refused: dict[str, list[str]] = {}
    for key in keys:
        try:
            found[key] = factor_of(key)
        except UnreadableKey as error:
            refused.setdefault(error.reason, []).append(key)
    return found, refused


def refuse_unreadable_keys(refused: Mapping[str, list[str]], total: int) -> None:
    """Raises ValueError, with counts and an example by kind: keys of a LoRA file whose names are no plain LoRA's."""
    if refused:
        found = "; ".join(
            f"{len(keys)} of {total} keys: {_refusal_text(keys[0], why)}" for why, keys in refused.items()
        )
        raise ValueError(f"not read, not even in part: {found}")


def understand_names(
    factors: Mapping[str, Factor], tensors: Mapping[str, Tensor], metadata: Mapping[str, str], header: Header | None
) -> Names:
    """What the layer names in a LoRA file mean.

    Args:   factors: of all keys that count.  header: of our own files.
    Raises: ValueError: a layer that is there twice; two parts; no layers; unknown names with several endings.
    """
    names = list(dict.fromkeys(factor.name for factor in factors.values()))
    fitting = [x for x in layouts_of(names) if _outputs_fit(x, factors, tensors) and not excluded(x, metadata)]
    if header is not None:
        layout = LAYOUTS.get(header.family) if LAYOUTS.get(header.family) in fitting else None
        read = layout or (fitting[0] if fitting and not header.family and not header.endings else None)
        found = _read_names(read, factors) if read else _verbatim_names(factors, f"{header.component or 'unet'}.")
        return _refuse_duplicates(Names(layout, header.component, found, header.endings))
    if fitting and len({tuple(y.layers for name in names if (y := x.read(name))) for x in fitting}) == 1:
        found = _read_names(fitting[0], factors)
        layout = _one_layout_of(fitting, found, tensors, metadata)
        return _refuse_duplicates(
            Names(layout, fitting[0].component, _read_names(layout, factors) if layout else found)
        )
    components = {next((x for x in PARTS if name.startswith(f"{x}.")), "") for name in names}
    if len(components) != 1:
        found = sorted(components) or "no layers"
        raise ValueError(f"an adapter changes one component of a pipeline, this file has {found}")
    component = components.pop()
    if all(name.startswith(PEFT_PREFIX) for name in names):  # a path in any module, by definition
        return _refuse_duplicates(Names(None, "", _verbatim_names(factors, PEFT_PREFIX)))
    return _refuse_duplicates(
        Names(None, component, _verbatim_names(factors, f"{component}." if component else ""), _common_endings(factors))
    )


def _one_layout_of(
    fitting: list[Layout], found: Mapping[str, Key], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Layout | None:
    """The one backbone of several with the same names: by metadata, else by the sizes of the public models, of several
    that are large enough the one whose last block is in the file."""
    named = layout_of_metadata(metadata)
    if named in fitting or len(fitting) == 1:
        return named if named in fitting else fitting[0]
    layers = {layer for key in found.values() for layer in key.layers}
    inputs = {
        x.layers[0]: tensors[key].shape[1]
        for key, x in found.items()
        if x.factor.kind == "A" and tensors[key].ndim == 2
    }
    sized = [x for x in fitting if x.has_size(x.width_of(inputs), layers)]
    whole = [x for x in sized if x.has_last_blocks(x.width_of(inputs), layers)]
    return next((some[0] for some in (sized, whole) if len(some) == 1), None)


def _outputs_fit(layout: Layout, factors: Mapping[str, Factor], tensors: Mapping[str, Tensor]) -> bool:
    """Whether a backbone whose names fit also has layers of this size: fused ones with as many outputs as they must
    have, no width that is another model's."""
    inputs = {x.name: tensors[key].shape[-1] for key, x in factors.items() if x.kind == "A" and tensors[key].ndim == 2}
    read = {x: layout.read(x) for x in inputs} if layout.foreign_widths else {}
    if layout.width_of({x.layers[0]: inputs[name] for name, x in read.items() if x}) in layout.foreign_widths:
        return False
    for key, factor in factors.items():
        named = layout.read(factor.name) if factor.kind == "B" and factor.name in inputs else None
        fixed = named and (named.layers[1:] or named.layers[0].rpartition(".")[2] in layout.outputs)
        if named and fixed and tensors[key].ndim == 2:
            if len(tensors[key]) != sum(layout.heights(named.layers, inputs[factor.name]).values()):
                return False
    return True


def _read_names(layout: Layout, factors: Mapping[str, Factor]) -> dict[str, Key]:
    named = {key: layout.read(factor.name) for key, factor in factors.items()}
    return {key: Key(factors[key], x.layers, x.spelling) for key, x in named.items() if x is not None}


def _verbatim_names(factors: Mapping[str, Factor], prefix: str) -> dict[str, Key]:
    """Names that stay as they are, but for the component's."""
    return {key: Key(x, (x.name.removeprefix(prefix),), VERBATIM) for key, x in factors.items()}


def _common_endings(factors: Mapping[str, Factor]) -> str:
    """The endings of A, B and alpha in names that no backbone has, with spaces between. Raises ValueError: several for
    one of them."""
    found: dict[str, str] = {}
    for key, factor in factors.items():
        if found.setdefault(factor.kind, factor.ending) != factor.ending:
            raise ValueError(
                f"{printable(key)}: of a model that qrlora does not know; its names are kept as they are, which needs "
                f"one kind of endings, and there are {found[factor.kind]} and {factor.ending}"
            )
    return " ".join(found[kind] for kind in ("A", "B", "alpha") if kind in found)


def _refuse_duplicates(names: Names) -> Names:
    """The same names. Raises ValueError: no layers; a factor of a layer that is there twice."""
    seen: dict[tuple[str, str], str] = {}
    for key, meaning in sorted(names.keys.items(), key=lambda item: natural(item[1].layers[0])):
        for layer in meaning.layers:
            before = seen.setdefault((layer, meaning.factor.kind), key)
            if before != key:
                raise ValueError(f"{printable(before)} and {printable(key)} are the same factor of one layer, twice")
    if not names.keys:
        raise ValueError("an adapter changes one component of a pipeline, this file has no layers")
    return names


def _refusal_text(key: str, reason: str) -> str:
    """Why keys are refused, with one of them; for text encoders the hint too."""
    hint = "; leave them out with --skip-text-encoders, or load(..., skip_text_encoders=True)"
    return f"{reason} ({printable(key)}){hint if is_text_encoder(key) else ''}"
