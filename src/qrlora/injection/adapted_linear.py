"""A linear layer with updates beside it: W x + sum_k s_k B_k A_k x, computed with as little as the frozen parts allow.

PEFT's layer does the same with four products and as many passes over the layer's output for each adapter; it is what
the tests compare with. Letters: o outputs, i inputs, r rank, n rows (tokens of all pictures), b pictures.

Number types, decided here and nowhere else. A and B are kept in float32. Their products are computed in the base's own
type, as the base's are, but in float32 where that is too coarse: beside a float16 base, whose range gradients leave,
and where B A is a small difference of large terms, as in the method qr-direct.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ..linalg import inner
from . import weight_folding

Strength = float | Tensor
"""How strongly an adapter acts: a number, or (b,) one for each picture of a batch."""


class AdaptedLinear(nn.Module):
    """A linear layer and its updates by name."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        self.A, self.B = nn.ParameterDict(), nn.ParameterDict()
        self.strengths: dict[str, Strength] = {}
        self.gates: dict[str, Tensor] = {}
        """(i,) by name: that A is A diag(gate). A gate may learn, so these are kept out of the sum."""
        self.delicate: set[str] = set()
        """Names whose products need float32."""
        self.learning = ""
        """The name whose factors may change at any time; "" for none. All others are frozen and kept summed."""
        self.folds = False
        """Whether the frozen sum is written into the weight, where rounding leaves it what it is."""
        self._original: tuple[Any, ...] = ()  # a tuple hides it from the module's list of parameters
        self._scales: Tensor | None = None
        self.register_buffer("sum_A", None, persistent=False)
        self.register_buffer("sum_B", None, persistent=False)
        self.register_buffer("coarse_A", None, persistent=False)

    @property
    def weight(self) -> Tensor:
        """The base's (o, i): libraries look at its dtype and device."""
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The base's."""
        return self.base_layer.bias

    def put(self, name: str, A: Tensor, B: Tensor, delicate: bool) -> None:
        """Copies of A (r, i) and B (o, r) on the layer's device, frozen; they act once they have a strength."""
        home = self.base_layer.weight.device
        for factors, value in ((self.A, A), (self.B, B)):
            copied = value.detach().to(home, torch.float32, copy=True).contiguous()
            factors[name] = nn.Parameter(copied, requires_grad=False)
        if delicate:
            self.delicate.add(name)

    def remove(self, name: str) -> None:
        """Forget an update."""
        self.strengths.pop(name, None)
        self.delicate.discard(name)
        self.learning = "" if self.learning == name else self.learning
        self.refresh()
        del self.A[name], self.B[name]

    def refresh(self) -> None:
        """Sum the frozen updates that act, and fold the sum if asked for; after every change of name or strength."""
        self.unfold()
        weight: Any = self.base_layer.weight
        coarse = weight.dtype == torch.bfloat16 and not self.delicate
        frozen_A = self.learning and not self.A[self.learning].requires_grad
        self.coarse_A = self.A[self.learning].detach().bfloat16() if coarse and frozen_A else None
        apart = {self.learning, *self.gates}
        frozen = {x: s for x, s in self.strengths.items() if x not in apart and (isinstance(s, Tensor) or s)}
        terms = [(self.A[name].detach(), self.B[name].detach(), s) for name, s in frozen.items()]
        if not terms:
            self.sum_A = self.sum_B = self._scales = None
            return
        sum_A, sum_B, self._scales = _summed(terms)
        self.sum_A, self.sum_B = (sum_A.bfloat16(), sum_B.bfloat16()) if coarse else (sum_A, sum_B)
        plain = _is_plain(self.base_layer) and weight.is_floating_point()
        if self.folds and plain and self._scales is None and not self.learning:
            self._fold(sum_A, sum_B)

    def _fold(self, A: Tensor, B: Tensor) -> None:
        """W + B A in the weight's place, rounded to the weight's type, if that leaves the update what it is."""
        W = self.base_layer.weight.detach()
        total = weight_folding.folded(W, A, B) if weight_folding.keeps(W, A, B) else None
        if total is not None:
            self._original = (self.base_layer.weight,)
            self.base_layer.weight = nn.Parameter(total, requires_grad=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Where the layer is moved to, the weight that waits for its place goes, too."""
        super()._apply(fn, recurse)
        for weight in self._original:
            weight.data = fn(weight.data)
        return self

    def unfold(self) -> None:
        """The base's own weight again, the very tensor: nothing is subtracted."""
        if self._original:
            self.base_layer.weight = self._original[0]
            self._original = ()

    def forward(self, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        base: Any = self._modules["base_layer"]  # past nn.Module's own lookup, here and below: see `_pairs`
        pairs = self._pairs()
        if not pairs:
            return base(x, *rest, **named)
        A, B, scales = pairs[0]
        if len(pairs) == 1 and scales is None and self._fuses(base, x):
            W, b = base._parameters["weight"], base._parameters["bias"]
            return LinearWithUpdate.apply(x, W, b, _as(A, x.dtype), _as(B, x.dtype))  # pyright: ignore[reportReturnType]
        y = base(x, *rest, **named)
        return add_updates(y, x, pairs, torch.float32 if self.delicate or y.dtype == torch.float16 else y.dtype)

    def _pairs(self) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """(A, B, scales or None) of what acts beside the weight: the frozen sum, what is gated, and what learns.

        Every layer asks at every pass. A small product takes 3 microseconds, nn.Module's lookup of a name 0.7 and
        ParameterDict's 1.4, of which a layer would need a dozen; its dictionaries answer at once.
        """
        found: list[Any] = []
        sums: Any = self._buffers
        if sums["sum_A"] is not None and not self._original:
            found.append((sums["sum_A"], sums["sum_B"], self._scales))
        for name, gate in self.gates.items():
            found.append((self.A[name] * gate, self.B[name] * self.strengths[name], None))
        if name := self.learning:
            factors: Any = self._modules
            A, B, strength = factors["A"]._parameters[name], factors["B"]._parameters[name], self.strengths[name]
            A = A if sums["coarse_A"] is None else sums["coarse_A"]
            if isinstance(strength, Tensor):
                found.append((A, B, strength[:, None].expand(-1, len(A))))
            else:
                found.append((A, B if strength == 1 else B * strength, None))
        return found

    def _fuses(self, base: Any, x: Tensor) -> bool:
        """Whether LinearWithUpdate computes what `add_updates` does: gradients are wanted, a plain layer."""
        dtype = x.dtype
        return (
            torch.is_grad_enabled()
            and _is_plain(base)
            and dtype == base._parameters["weight"].dtype
            and dtype != torch.float16
            and not (self.delicate and dtype != torch.float32)
            and not base._parameters["weight"].requires_grad
            and not (torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type))
        )


def add_updates(
    y: Tensor, x: Tensor, pairs: Sequence[tuple[Tensor, Tensor, Tensor | None]], dtype: torch.dtype
) -> Tensor:
    """y + sum (x A^T * scales) B^T in y's dtype, computed in `dtype`; without gradients y is overwritten.

    Args:    x (b, ..., i), y (b, ..., o).  pairs: A (r, i), B (o, r), and None or scales (c, r), of which row k is
             for picture k: where guidance has put several copies of a batch below each other, b is a multiple of c.
             B (o, m r) and scales (c, m r) are m adapters of one A.
    Raises:  ValueError: b is no multiple of c.
    """
    total, rows = _as(y, dtype).reshape(-1, y.shape[-1]), _as(x, dtype)
    for A, B, scales in pairs:
        h = functional.linear(rows, _as(A, dtype))
        if scales is not None:
            h = torch.cat([h] * (scales.shape[1] // len(A)), -1)  # once for each adapter that shares A
            if len(h) % len(scales):
                raise ValueError(f"strengths for {len(scales)} pictures cannot act on a batch of {len(h)} rows")
            each = scales.to(h).repeat(len(h) // len(scales), 1)
            h = h * each.view(len(h), *[1] * (h.ndim - 2), -1)
        add = total.addmm if torch.is_grad_enabled() else total.addmm_
        total = add(h.reshape(-1, B.shape[1]), _as(B, dtype).T)
    return _as(total.view(y.shape), y.dtype)


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in a type; `to` alone takes a microsecond to find that it is of that type."""
    return x if x.dtype == dtype else x.to(dtype)


class LinearWithUpdate(torch.autograd.Function):
    """x W^T + b + (x A^T) B^T with frozen W and b, in one node: while A is frozen it keeps of the rows x, for the
    backward pass, x A^T alone (r numbers each), and it adds to a product's result where it lies.

    With at least as many rows as inputs, W + B A is the cheaper way to add the update, and is formed for the moment,
    in both passes; it loses nothing in float32, so there alone.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor) -> Tensor:
        _, _, _, A_learns, B_learns = ctx.needs_input_grad
        rows = x.reshape(-1, x.shape[-1])
        ctx.formed = x.dtype != torch.bfloat16 and len(rows) >= x.shape[-1]
        h = rows @ A.T if B_learns or not ctx.formed else None
        if ctx.formed:
            y = functional.linear(x, torch.addmm(W, B, A), b)
        else:
            assert h is not None
            y = functional.linear(x, W, b)
            y.view(-1, y.shape[-1]).addmm_(h, B.T)
        ctx.save_for_backward(W, A, B, h if B_learns else None, rows if A_learns else None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        W, A, B, h, rows = ctx.saved_tensors
        x_learns, _, _, A_learns, B_learns = ctx.needs_input_grad
        (gradient,) = gradients
        g = gradient.reshape(-1, gradient.shape[-1])
        dx = dA = None
        back = g @ B if A_learns or (x_learns and not ctx.formed) else g  # g itself: not used
        if x_learns:
            dx = g @ torch.addmm(W, B, A) if ctx.formed else (g @ W).addmm_(back, A)
            dx = dx.view(*gradient.shape[:-1], -1)
        if A_learns:
            dA = back.T @ rows
        return dx, None, None, dA, g.T @ h if B_learns else None


def _summed(terms: Sequence[tuple[Tensor, Tensor, Strength]]) -> tuple[Tensor, Tensor, Tensor | None]:
    """One pair for sum_k s_k B_k A_k, strengths in B: of rank r where all share A, byte for byte, else stacked.

    Strengths by picture stay beside the stacked B; A is one where all share it.
    Returns: A (R, i), B (o, R), and None; or A (R, i) or (r, i), B (o, R) and scales (b, R).
    """
    if any(isinstance(s, Tensor) for _, _, s in terms):
        first, shared = terms[0][0], all(torch.equal(A, terms[0][0]) for A, _, _ in terms[1:])
        each = torch.broadcast_tensors(*[torch.as_tensor(s, dtype=first.dtype, device=first.device) for *_, s in terms])
        scales = [s[:, None].expand(-1, len(A)) for (A, _, _), s in zip(terms, each, strict=True)]
        A = first if shared else torch.cat([A for A, _, _ in terms])
        return A, torch.cat([B for _, B, _ in terms], 1), torch.cat(scales, 1)
    distinct: list[tuple[Tensor, Tensor]] = []
    for A, B, strength in terms:
        for known, total in distinct:
            if torch.equal(known, A):
                total.add_(B * strength)
                break
        else:
            distinct.append((A, B * strength))
    if len(distinct) == 1:
        return *distinct[0], None
    return torch.cat([A for A, _ in distinct]), torch.cat([B for _, B in distinct], 1), None


def cancels(A: Tensor, B: Tensor) -> bool:
    """Whether |B A| is far below what |A| |B| lets one expect, sqrt(r) |B A| < |A| |B| / 8: rounding the factors to
    bfloat16 (2^-9) would then cost more than some 2 % of the update. False for an update of zero."""
    size = float(A.square().sum(dtype=torch.float64) * B.square().sum(dtype=torch.float64))
    return size > 0 and len(A) * inner(A, B, A, B) < size / 64


def _is_plain(layer: nn.Linear) -> bool:
    """Whether a layer is torch's own with an ordinary weight, neither quantised nor replaced nor watched."""
    return (
        type(layer) is nn.Linear
        and type(layer._parameters.get("weight")) is nn.Parameter
        and "forward" not in layer.__dict__
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
    )
