"""A linear layer with LoRA updates: W x + sum_k s_k B_k A_k x, with frozen updates summed and the forward pass fused.

PEFT's LoRA layer, which the tests compare with, takes four operations for each adapter, each a pass over the layer's
output. Letters: o outputs, i inputs, r rank, n rows (tokens of all images), b images.

dtypes are decided here and nowhere else. A and B are kept in float32. Their products are computed in the base's dtype,
but in float32 where that is too coarse: with a float16 base, whose range gradients exceed, and where B A is a small
difference of large terms, as in the method qr-direct.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from ..linalg import to_double, update_inner_product
from . import weight_folding

Strength = float | Tensor
"""An adapter's strength: a number, or (b,) one for each image of a batch."""


class AdaptedLinear(nn.Module):
    """A linear layer and the LoRA updates on it, by adapter name."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        self.A, self.B = nn.ParameterDict(), nn.ParameterDict()
        self.strengths: dict[str, Strength] = {}
        self.coefficients: dict[str, Tensor] = {}
        """{name: (i,)} merger coefficients m: A becomes A diag(m). They may be trainable: not in the sum."""
        self.needs_float32: set[str] = set()
        """Names of adapters whose products need float32."""
        self.trainable_name = ""
        """Name of the adapter that is being trained; "" for none. All others are frozen and kept as one sum."""
        self.fold = False
        """Whether to fold the frozen sum into the weight, if rounding is negligible."""
        self._original_weight: tuple[Any, ...] = ()  # in a tuple, so that nn.Module does not register it
        self._sum_scales: Tensor | None = None
        self.register_buffer("sum_A", None, persistent=False)
        self.register_buffer("sum_B", None, persistent=False)
        self.register_buffer("bfloat16_A", None, persistent=False)

    @property
    def weight(self) -> Tensor:
        """The base's (o, i): libraries look at its dtype and device."""
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The base's."""
        return self.base_layer.bias

    def add_update(self, name: str, A: Tensor, B: Tensor, needs_float32: bool) -> None:
        """Add frozen copies of A (r, i) and B (o, r) to this linear layer, on its device. Without a strength they are
        inactive."""
        device = self.base_layer.weight.device
        for factors, value in ((self.A, A), (self.B, B)):
            copied = value.detach().to(device, torch.float32, copy=True).contiguous()
            factors[name] = nn.Parameter(copied, requires_grad=False)
        if needs_float32:
            self.needs_float32.add(name)

    def remove_update(self, name: str) -> None:
        """Remove an update from this linear layer."""
        self.strengths.pop(name, None)
        self.needs_float32.discard(name)
        self.trainable_name = "" if self.trainable_name == name else self.trainable_name
        self.update_frozen_sum()
        del self.A[name], self.B[name]

    def update_frozen_sum(self) -> None:
        """Sum the active frozen updates, and fold the sum if `fold`: after every change of adapters or strengths."""
        self.restore_weight()
        weight: Any = self.base_layer.weight
        in_bfloat16 = weight.dtype == torch.bfloat16 and not self.needs_float32
        frozen_A = self.trainable_name and not self.A[self.trainable_name].requires_grad
        self.bfloat16_A = self.A[self.trainable_name].detach().bfloat16() if in_bfloat16 and frozen_A else None
        not_summed = {self.trainable_name, *self.coefficients}
        frozen = {x: s for x, s in self.strengths.items() if x not in not_summed and (isinstance(s, Tensor) or s)}
        terms = [(self.A[name].detach(), self.B[name].detach(), s) for name, s in frozen.items()]
        if not terms:
            self.sum_A = self.sum_B = self._sum_scales = None
            return
        sum_A, sum_B, self._sum_scales = _sum_updates(terms)
        self.sum_A, self.sum_B = (sum_A.bfloat16(), sum_B.bfloat16()) if in_bfloat16 else (sum_A, sum_B)
        foldable = _is_plain_linear(self.base_layer) and weight.is_floating_point()
        if self.fold and foldable and self._sum_scales is None and not self.trainable_name:
            self._fold_into_weight(sum_A, sum_B)

    def _fold_into_weight(self, A: Tensor, B: Tensor) -> None:
        """Replace the weight by W + B A, rounded to its dtype, if rounding is negligible."""
        W = self.base_layer.weight.detach()
        total = weight_folding.fold_update(W, A, B) if weight_folding.rounding_is_negligible(W, A, B) else None
        if total is not None:
            self._original_weight = (self.base_layer.weight,)
            self.base_layer.weight = nn.Parameter(total, requires_grad=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """`to`, `cuda` and the like: the original of a folded weight moves with the layer."""
        super()._apply(fn, recurse)
        for weight in self._original_weight:
            weight.data = fn(weight.data)
        return self

    def restore_weight(self) -> None:
        """Undo folding in this layer: the original weight tensor is put back; nothing is subtracted."""
        if self._original_weight:
            self.base_layer.weight = self._original_weight[0]
            self._original_weight = ()

    def forward(self, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        """The base layer's output and the active updates'."""
        base: Any = self._modules["base_layer"]  # not by nn.Module.__getattr__, here and below: see `_active_pairs`
        pairs = self._active_pairs()
        if not pairs:
            return base(x, *rest, **named)
        A, B, scales = pairs[0]
        if len(pairs) == 1 and scales is None and self._can_fuse(base, x):
            W, b = base._parameters["weight"], base._parameters["bias"]
            return LinearWithUpdate.apply(x, W, b, _to_dtype(A, x.dtype), _to_dtype(B, x.dtype))  # pyright: ignore[reportReturnType]
        y = base(x, *rest, **named)
        return add_updates(y, x, pairs, torch.float32 if self.needs_float32 or y.dtype == torch.float16 else y.dtype)

    def _active_pairs(self) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """(A, B, scales or None) of the active updates: frozen sum, those with merger coefficients, the trainable one.

        Called in every forward pass, where a small product takes 3 microseconds, nn.Module's attribute lookup 0.7 and
        ParameterDict's 1.4. A layer would need a dozen, so its dictionaries are read directly.
        """
        pairs: list[Any] = []
        sums: Any = self._buffers
        if sums["sum_A"] is not None and not self._original_weight:
            pairs.append((sums["sum_A"], sums["sum_B"], self._sum_scales))
        for name, coefficient in self.coefficients.items():
            pairs.append((self.A[name] * coefficient, self.B[name] * self.strengths[name], None))
        if name := self.trainable_name:
            factors: Any = self._modules
            A, B, strength = factors["A"]._parameters[name], factors["B"]._parameters[name], self.strengths[name]
            A = A if sums["bfloat16_A"] is None else sums["bfloat16_A"]
            if isinstance(strength, Tensor):
                pairs.append((A, B, strength[:, None].expand(-1, len(A))))
            else:
                pairs.append((A, B if strength == 1 else B * strength, None))
        return pairs

    def _can_fuse(self, base: Any, x: Tensor) -> bool:
        """Whether LinearWithUpdate can replace `add_updates`: with gradients, on a plain linear layer."""
        dtype = x.dtype
        return (
            torch.is_grad_enabled()
            and _is_plain_linear(base)
            and dtype == base._parameters["weight"].dtype
            and dtype != torch.float16
            and not (self.needs_float32 and dtype != torch.float32)
            and not base._parameters["weight"].requires_grad
            and not (torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type))
        )


def add_updates(
    y: Tensor, x: Tensor, pairs: Sequence[tuple[Tensor, Tensor, Tensor | None]], dtype: torch.dtype
) -> Tensor:
    """y + sum (x A^T * scales) B^T in y's dtype, computed in `dtype`; without gradients y is overwritten.

    Args:    x (b, ..., i), y (b, ..., o).  pairs: A (r, i), B (o, r), and None or scales (c, r), of which row k is
             for image k: with classifier-free guidance, which repeats a batch, b is a multiple of c.
             B (o, m r) and scales (c, m r) are m adapters that share A.
    Raises:  ValueError: b is no multiple of c.
    """
    total, rows = _to_dtype(y, dtype).reshape(-1, y.shape[-1]), _to_dtype(x, dtype)
    for A, B, scales in pairs:
        h = functional.linear(rows, _to_dtype(A, dtype))
        if scales is not None:
            h = torch.cat([h] * (scales.shape[1] // len(A)), -1)  # once for each adapter that shares A
            if len(h) % len(scales):
                raise ValueError(f"strengths for {len(scales)} images cannot act on a batch of {len(h)} rows")
            each = scales.to(h).repeat(len(h) // len(scales), 1)
            h = h * each.view(len(h), *[1] * (h.ndim - 2), -1)
        add = total.addmm if torch.is_grad_enabled() else total.addmm_
        total = add(h.reshape(-1, B.shape[1]), _to_dtype(B, dtype).T)
    return _to_dtype(total.view(y.shape), y.dtype)


def _to_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in a dtype; `to` alone takes a microsecond to find that nothing is to be done."""
    return x if x.dtype == dtype else x.to(dtype)


class LinearWithUpdate(torch.autograd.Function):
    """x W^T + b + (x A^T) B^T with frozen W and b as one autograd function, adding in place. While A is frozen it saves
    for the backward pass x A^T (r numbers a row) instead of x.

    With at least as many rows as inputs it is cheaper to form W + B A, temporarily, in both passes. In float32 that
    loses nothing, so it is done there alone.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor) -> Tensor:
        """The layer's output W x + B A x + b, fused; nothing but x and A x is kept for the backward pass."""
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
        """Gradients of the fused layer's x, A and B."""
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


def _sum_updates(terms: Sequence[tuple[Tensor, Tensor, Strength]]) -> tuple[Tensor, Tensor, Tensor | None]:
    """One pair (A, B) for sum_k s_k B_k A_k, with the strengths in B: of rank r if all share A, else stacked.

    Strengths for each image stay outside, as scales of the stacked B; a shared A occurs once.
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


def product_cancels(A: Tensor, B: Tensor) -> bool:
    """Whether B A is a small difference of large terms, sqrt(r) |B A| < |A| |B| / 8: rounding the factors to bfloat16
    (2^-9) would then change the update by more than about 2 %. False for a zero update."""
    size = float(to_double(A).square().sum() * to_double(B).square().sum())
    return size > 0 and len(A) * update_inner_product(A, B, A, B) < size / 64


def _is_plain_linear(layer: nn.Linear) -> bool:
    """Whether a layer is torch's nn.Linear with a plain weight: not quantised, subclassed or hooked."""
    return (
        type(layer) is nn.Linear
        and type(layer._parameters.get("weight")) is nn.Parameter
        and "forward" not in layer.__dict__
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
    )
