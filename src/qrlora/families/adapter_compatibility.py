"""Whether an adapter belongs to a base, and how it can be drawn with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from ..adapter import Adapter, name_ends_in
from ..basis import fingerprint, same_base
from ..built_in_bases import built_in_bases
from .base_model import Base


def check_adapter_fits_base(base: Base, adapter: Adapter) -> None:
    """Refuse an adapter of another kind of base, or of another edition of a built-in one, by the bases' names.

    Raises: ValueError: another family; layers that the base does not have, or has in another shape; weights of a
            built-in base that changed since: it is made anew now and then, under its old name.
    """
    found = {name.removesuffix(".base_layer"): module for name, module in base.model.named_modules()}
    shapes = {name: (x.out_features, x.in_features) for name, x in found.items() if isinstance(x, nn.Linear)}
    wrong = [layer for layer, shape in adapter.shapes.items() if shapes.get(layer) != shape]
    family = adapter.header.family
    _refuse_convolutions(base, adapter, [layer for layer in wrong if isinstance(found.get(layer), nn.Conv2d)])
    if wrong or family and family != base.family.name:
        role, made_for = _names_of_adapter_and_base(adapter)
        lack = _lacking_layers(adapter, wrong, shapes)
        raise ValueError(f"{role} belongs to another base, {made_for}, not to {_name(base)}{lack}: choose its own base")
    if adapter.header.base == base.name and base.name in built_in_bases() and weight_difference(base, adapter):
        raise ValueError(
            f"{_names_of_adapter_and_base(adapter)[0]} was trained on {base.name} of another version of qrlora, whose "
            "weights were others: train it again, which takes half a minute, or sample with the version that it was "
            "made with"
        )


def _lacking_layers(adapter: Adapter, wrong: Sequence[str], shapes: Mapping[str, tuple[int, int]]) -> str:
    """What of an adapter a base lacks; wrong: its layers that the base's linear layers, of these shapes, have not."""
    absent, of_all = [layer for layer in wrong if layer not in shapes], f"of its {len(adapter.layers)} layers"
    if absent or not wrong:
        return f"; {len(absent)} {of_all} are not there" if absent else ""
    (o, i), (rows, columns) = adapter.shapes[wrong[0]], shapes[wrong[0]]
    return f"; {len(wrong)} {of_all} have another size there, such as {wrong[0]}: {rows} x {columns}, not {o} x {i}"


def wants_single_images(base: Base, adapters: Sequence[Adapter]) -> bool:
    """Whether an adapter is on a layer that cannot have a strength for each image of a batch: Family.flattened."""
    return any(name_ends_in(layer, base.family.flattened) for adapter in adapters for layer in adapter.layers)


def weight_difference(base: Base, adapter: Adapter) -> str:
    """How the weights of a base differ from those that an adapter was trained on, in a sentence; "" if they are the
    same, or nobody knows.

    A base of the same kind, such as a fine-tuned one, can have it applied all the same.
    """
    expected = adapter.header.fingerprint
    here = fingerprint((layer, base.weight(layer)) for layer in expected)
    if same_base(expected, here):
        return ""
    role, made_for = _names_of_adapter_and_base(adapter)
    return f"{role} was trained on {made_for}, whose weights differ from those of {_name(base)}: it may act otherwise"


def _refuse_convolutions(base: Base, adapter: Adapter, convolutions: Sequence[str]) -> None:
    """Raises ValueError, with the hint: an adapter changes convolutions of this base, and `injection` linear layers."""
    if convolutions:
        changed = f"{_names_of_adapter_and_base(adapter)[0]} changes {len(convolutions)} convolutions of {_name(base)}"
        hint = "merge and convert it here, and generate in diffusers or ComfyUI"
        raise ValueError(f"{changed}, such as {convolutions[0]}, and qrlora applies linear layers alone: {hint}")


def _names_of_adapter_and_base(adapter: Adapter) -> tuple[str, str]:
    """What an adapter is called, and what its base is."""
    header = adapter.header
    family = f" ({header.family})" if header.family else ""
    return f"the {header.role} adapter" if header.role else "the adapter", f"{header.base or 'unknown'}{family}"


def _name(base: Base) -> str:
    return f"{base.name} ({base.family.name})"
