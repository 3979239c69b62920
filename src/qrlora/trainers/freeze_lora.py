"""Freeze the LoRA of any other trainer: A = Q^T becomes a buffer, B starts at zero and alone is trained.

A buffer is no parameter: no optimizer, clipping, `requires_grad_` or `set_adapter` of a trainer reaches A, while files,
checkpoints, casts and the start of DDP still carry it. Autograd keeps x Q, r numbers a token, instead of x.
Letters: o outputs, i inputs, r rank, A (r, i), B (o, r), W (o, i), Q (i, r). A convolution's A and W are viewed so.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..basis import Weights, cached_basis
from ..linalg import principal_angles

SPANNED = 0.99
"""The share of our directions, in squared cosines, that an A must span to go on as ours. Rounding a base to 16
bits costs 1e-5. To fp8 it costs up to 3 % in a single layer: what was begun on such weights goes on on such."""
PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""What A and B of a plain LoRA are the weights of."""


class AdaptedLayer(NamedTuple):
    """One layer's LoRA, and what it is beside."""

    name: str
    down: Any
    """A linear layer or convolution whose weight is A."""
    up: Any
    """One whose weight is B."""
    weight: Callable[[], Tensor]
    """() -> W, of any dtype and device."""

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i), by the LoRA."""
        return len(self.up.weight), self.down.weight[0].numel()


def freeze_layers(layers: Sequence[AdaptedLayer]) -> None:
    """Freeze every LoRA of any trainer: its A becomes a buffer, its B stays a parameter, both float32: Q^T and zero; or
    what they hold, where B is not zero, as after a file was loaded. Q comes from the cache, or is found on a GPU if
    there is one.

    Raises: ValueError, naming the layer: rank above its size, numbers on the meta device, NaN, a weight of another
            shape, a learnt A that does not span Q. No layer is changed then.
    """
    for layer in layers:
        _refuse_unfit_lora(layer)
    ranks = sorted({len(layer.down.weight) for layer in layers})
    Q: dict[str, Tensor] = {}
    for rank in ranks:
        Q |= _directions_of_layers({layer.name: layer for layer in layers if len(layer.down.weight) == rank}, rank)
    learnt = {layer.name for layer in layers if layer.up.weight.any()}
    for layer in layers:
        if layer.name in learnt:
            check_span_of_A(layer.name, layer.down.weight, Q[layer.name].T)
    for layer in layers:
        theirs = layer.down.weight.detach()
        A = theirs if layer.name in learnt else Q[layer.name].T
        layer.up.float()
        A_as_buffer(layer.down, A.to(theirs.device, torch.float32).reshape(theirs.shape).contiguous())


def A_as_buffer(down: Any, A: Tensor) -> None:
    """Make A the weight of a frozen LoRA's down layer as a buffer, which takes another A only if that spans it."""
    if isinstance(down.weight, nn.Parameter):
        del down.weight
        down._register_load_state_dict_pre_hook(_check_loaded_A, with_module=True)  # the public name is torch 2.5's
    down.register_buffer("weight", A)


def check_span_of_A(name: str, A: Tensor, ours: Tensor) -> None:
    """Raises ValueError unless the rows of a loaded A span those of the frozen one, both (r, i) if viewed so, by
    SPANNED."""
    rows = torch.linalg.qr(A.detach().flatten(1).float().T).Q
    share = float(principal_angles(rows, ours.detach().flatten(1).float().T.to(rows)).square().mean())
    if not share >= SPANNED:
        raise ValueError(
            f"{name}: its A spans {share:.0%} of this base's directions: it was learnt freely, or on another base, and "
            "cannot go on as a QR-LoRA; go on without qrlora, or start a new adapter"
        )


def _check_loaded_A(down: Any, state: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    """Check the A that any trainer's `load_state_dict` brings for a frozen LoRA; another shape is its own to refuse."""
    A = state.get(f"{prefix}weight")
    if A is not None and A.shape == down.weight.shape:
        check_span_of_A(prefix.removesuffix("."), A, down.weight)


def _refuse_unfit_lora(layer: AdaptedLayer) -> None:
    """Raises ValueError: a LoRA that cannot be frozen: of more than two matrices, without numbers, or of a rank that
    its layer has not."""
    if not isinstance(layer.down, PLAIN) or not isinstance(layer.up, PLAIN):
        kinds = f"{type(layer.down).__name__} and {type(layer.up).__name__}"
        raise ValueError(f"{layer.name}: is no plain LoRA of two matrices, but of {kinds}; leave it out")
    if layer.down.weight.is_meta or layer.up.weight.is_meta:
        raise ValueError(f"{layer.name}: its LoRA is on the meta device; load its file first")
    rank, most = len(layer.down.weight), min(layer.shape)
    if rank > most:
        raise ValueError(
            f"{layer.name}: has {most} directions, its LoRA rank {rank}; give it a lower rank, or leave it"
        )


def _directions_of_layers(layers: Mapping[str, AdaptedLayer], rank: int) -> Mapping[str, Tensor]:
    """{name: Q} of the layers whose LoRAs are to be frozen, from the cache."""

    def read(name: str) -> Tensor:
        """A layer's weight, read when its directions are computed."""
        W = layers[name].weight()
        if W.is_meta:
            raise ValueError(f"{name}: its weight is on the meta device; load the model first")
        if tuple(W.shape) != layers[name].shape:
            raise ValueError(f"{name}: its weight is {tuple(W.shape)}, its LoRA for one of {layers[name].shape}")
        return W

    weights = Weights({name: layer.shape for name, layer in layers.items()}, read)
    device = "cuda" if torch.cuda.is_available() else None
    with tqdm(total=len(layers), desc=f"directions of rank {rank}", disable=None) as bar:

        def count(name: str) -> None:
            bar.update()

        return cached_basis(weights, rank, progress=count, device=device).Q
