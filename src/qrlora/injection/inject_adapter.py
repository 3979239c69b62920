"""Start training a method on any nn.Module in one call: `qrlora.inject(model, targets=..., rank=...)`."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..adapter import Adapter, Header, linear_layers
from ..basis import Weights, compute_basis, fingerprint
from ..initialisation_methods import METHODS, describe_unused_slot
from .apply_adapter import detach, extract, initialise, trainable_factors
from .initial_factors import initial_factors


@dataclass(frozen=True)
class InjectedAdapter:
    """An adapter in training on a model of one's own."""

    model: nn.Module
    name: str
    header: Header
    """Header of the extracted adapter."""

    def parameters(self) -> list[nn.Parameter]:
        """The trainable factors, float32: give them to an optimizer. Nothing else on the model gets a gradient."""
        return list(trainable_factors(self.model, self.name).values())

    def extract(self, **header_entries: str) -> Adapter:
        """A copy of the injected and trained adapter, on the CPU, to save, merge, or apply again by
        `qrlora.injection.apply`.

        Args:   header_entries: entries of the header, such as base="NAME" or role="style".
        Raises: ValueError: NaN or infinity in it.
        """
        return extract(self.model, self.name, dataclasses.replace(self.header, **header_entries))

    def lift(self, **header_entries: str) -> Adapter:
        """The old name of `extract`; it goes with 0.3."""
        warnings.warn("lift is now extract; the old name goes with 0.3", DeprecationWarning, stacklevel=2)
        return self.extract(**header_entries)

    def detach(self) -> None:
        """Detach it; the model's outputs are as before, its own parameters still frozen."""
        detach(self.model, self.name)


def inject(
    model: nn.Module,
    targets: str | Sequence[str],
    rank: int,
    method: str = "qr",
    name: str = "learning",
    seed: int = 0,
    original: Callable[[str], Tensor] | None = None,
    slot: int = 0,
) -> InjectedAdapter:
    """Inject an untrained adapter into a model's linear layers; before training, outputs are as before, bit for bit.

    All of the model's own parameters are frozen. A and B are float32 whatever the model's dtype.

    Args:    targets: endings of layer names in whole dotted parts, a list or with commas between: "q_proj,v_proj".
             rank: directions in each layer.  method: row of METHODS.
             name: of the adapter, not part of any layer's name.  seed: of the random initialisation of "lora".
             slot: of "ortha": adapters that are to be added need different ones.
             original: (layer) -> its weight (o, i), where the model holds it quantised.
    Raises:  ValueError: an ending that no linear layer has, no such method or one that needs a training example, a rank
             above a layer's smaller side, NaN in a weight, a name in use, a quantised layer without `original`.
    """
    endings = targets.split(",") if isinstance(targets, str) else targets
    layers = linear_layers(model, [ending.strip() for ending in endings])
    if not layers or method not in METHODS:
        known = f"methods: {', '.join(METHODS)}"
        raise ValueError(f"inject needs targets and a method, got {targets!r} and {method!r}; {known}")
    if METHODS[method].needs_example:
        raise ValueError(f"{method} finds its directions by a picture and a prompt, which a lone model lacks: use qr")
    if unused := describe_unused_slot(method, slot, default=0):
        raise ValueError(unused)
    shapes = {layer: (linear.out_features, linear.in_features) for layer, linear in layers.items()}
    row, weights = (
        METHODS[method],
        Weights(shapes, original or (lambda layer: _unquantised_weight(layer, layers[layer]))),
    )
    generator = torch.Generator().manual_seed(seed)
    factors, basis = initial_factors(
        row, weights, rank, generator, slot, lambda: compute_basis(weights, rank, row.side or "")
    )
    initialise(model, factors, name)
    header = Header(
        method=method,
        rank=rank,
        targets=",".join(endings),
        basis=basis.digest if basis else "",
        config={"basis_energy_lost": basis.lost} if basis else {},
        fingerprint=fingerprint(weights),
    )
    return InjectedAdapter(model, name, header)


def _unquantised_weight(name: str, layer: nn.Linear) -> Tensor:
    """A layer's weight to inject an adapter beside. Raises ValueError: it is quantised, so that its directions would
    not be the model's."""
    weight = layer.weight.detach()
    if type(weight) is not Tensor or not weight.is_floating_point():
        raise ValueError(f"{name} is quantised: pass original=..., which reads a layer's weight before it was")
    return weight
