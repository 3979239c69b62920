"""METHODS, how A and B of a LoRA are initialised and which of them is trained: qr, lora, PiSSA, OLoRA, Orthogonal
Adaptation.

Letters: o outputs, i inputs, r rank. Every method's update of a weight W (o, i) is B A with
A (r, i) and B (o, r), so that every method lives in an ordinary LoRA layer and file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .basis import Basis, Weights
from .initial_directions import minor_directions, slot_directions


@dataclass(frozen=True)
class InitialFactors:
    """Initial factors of one layer's update B A."""

    A: Tensor
    """(r, i), float32."""
    B: Tensor
    """(o, r), float32."""
    trainable: tuple[str, ...]
    """The factors that get a gradient: ("B",), ("A",) or ("A", "B"). The others stay frozen."""
    mask: Tensor | None = None
    """0/1, the shape of the trained factor: entries at 0 stay zero. None: all are trained."""
    subtract_start: bool = False
    """True: the update is B A - B_0 A_0, so that step 0 is the base; exported at rank 2r as [A; A_0], [B, -B_0]."""


@dataclass(frozen=True)
class DirectionSources:
    """What a method can compute its directions Q from; each method reads what it needs."""

    weights: Weights
    """The target layers' weights (o, i)."""
    rank: int
    slot: int
    """Block of the random orthogonal basis, of ortha."""
    leading: Callable[[], Basis]
    """() -> the leading singular vectors on the method's side; a caller may keep them on disk."""
    contrast: Callable[[], Mapping[str, Tensor]] = dict
    """() -> {layer: Q (i, r)} that the training example excites and ordinary prompts do not."""


def leading_directions(sources: DirectionSources) -> Basis:
    """The leading singular vectors of each weight, on the method's side."""
    return sources.leading()


def minor_input_directions(sources: DirectionSources) -> Basis:
    """The weakest input directions of each weight, see `minor_directions`."""
    Q = {layer: minor_directions(weight, sources.rank) for layer, weight in sources.weights}
    return Basis(Q, sources.rank, "input")


def orthogonal_slot_directions(sources: DirectionSources) -> Basis:
    """One block of columns of a random orthogonal basis for each layer, see `slot_directions`; no weight is read."""
    rank, slot = sources.rank, sources.slot
    Q = {layer: slot_directions(inputs, rank, slot) for layer, (_, inputs) in sources.weights.layers.items()}
    return Basis(Q, rank, "input")


def contrastive_directions(sources: DirectionSources) -> Basis:
    """Directions of the inputs that the training example gives to each layer and ordinary prompts do not."""
    return Basis(sources.contrast(), sources.rank, "input")


@dataclass(frozen=True)
class Method:
    """One row of METHODS."""

    name: str
    """The word in recipes and headers."""
    side: str | None
    """The side of the weight on which the method needs directions Q: "input", "output", or None."""
    frozen: bool
    """True: those directions (A = Q^T or B = Q) stay as they are, equal in all adapters of one basis."""
    start: Callable[[Tensor, Tensor | None, int, torch.Generator | None], InitialFactors]
    """(weight (o, i), Q or None, rank, generator) -> InitialFactors."""
    paper: str
    """Where it comes from."""
    reads_weight: bool = False
    """True: the initial factors depend on the weight's values, not on its shape alone."""
    triangular: bool = False
    """True: only the entries on and above the diagonal of the trained factor are trained."""
    directions: Callable[[DirectionSources], Basis] = leading_directions
    """Where Q comes from; called only where `side` says that there is one."""
    needs_example: bool = False
    """True: Q depends on the training example and on ordinary prompts, which a lone model lacks."""
    has_slots: bool = False
    """True: Q is the block `slot` of an orthogonal basis."""
    shares_basis: bool = True
    """True: other adapters can have the same Q, and the header names it by its digest."""

    @property
    def frozen_side(self) -> str | None:
        """The side whose directions all adapters of one basis share, "input" (A) or "output" (B); None: none."""
        return self.side if self.frozen else None

    def trainable_parameters(self, outputs: int, inputs: int, rank: int) -> int:
        """Trained parameters of one layer of shape (outputs, inputs)."""
        of_A = 0 if self.frozen_side == "input" else rank * inputs
        of_B = 0 if self.frozen_side == "output" else rank * outputs
        return of_A + of_B - (rank * (rank - 1) // 2 if self.triangular else 0)


def has_slots(method: str) -> bool:
    """Whether a method, a row of METHODS or `peft:KIND`, takes its directions from a block of an orthogonal basis."""
    return method in METHODS and METHODS[method].has_slots


def describe_unused_slot(method: str, slot: int, default: int) -> str:
    """What is wrong with another slot than the default for a method that has none; "": nothing."""
    if slot == default or has_slots(method):
        return ""
    use = ", ".join(name for name, row in METHODS.items() if row.has_slots)
    return f"slot={slot} changes nothing with method={method}: it is for {use}; leave it out"


def qr(weight: Tensor, Q: Tensor | None, rank: int, generator: torch.Generator | None = None) -> InitialFactors:
    """A = Q^T frozen, the leading right singular vectors; B = dR^T trained from zero (paper, eq. 5-6).

    The paper trains W_comp + (Q (R + dR))^T. Its frozen parts cancel against W: W + dR^T Q^T.

    Args:    weight (o, i), Q (i, r).
    Raises:  ValueError: Q missing or of another shape.
    """
    directions = _checked_directions(Q, weight.shape[1], rank, "input")
    return InitialFactors(A=directions.T.contiguous(), B=torch.zeros(weight.shape[0], rank), trainable=("B",))


def qr_output(weight: Tensor, Q: Tensor | None, rank: int, generator: torch.Generator | None = None) -> InitialFactors:
    """B = Q frozen, the leading left singular vectors; A = dR trained from zero (the authors' code).

    Args:    weight (o, i), Q (o, r).
    Raises:  ValueError: Q missing or of another shape.
    """
    directions = _checked_directions(Q, weight.shape[0], rank, "output")
    return InitialFactors(A=torch.zeros(rank, weight.shape[1]), B=directions.clone(), trainable=("A",))


def qr_triangular(
    weight: Tensor, Q: Tensor | None, rank: int, generator: torch.Generator | None = None
) -> InitialFactors:
    """As qr_output, with A = dR upper triangular like R itself (the authors' code, its default).

    A mask depends on the choice of axes inside the span: they are those of W_core = Q R with R
    upper triangular, diag(R) >= 0. With U_r the given directions and U_r^T W = P R, Q = U_r P.

    Args:    weight (o, i), Q (o, r): any orthonormal basis of the leading output directions.
    Raises:  ValueError: Q missing or of another shape.
    """
    directions = _checked_directions(Q, weight.shape[0], rank, "output").double()
    core = torch.linalg.qr(directions.T @ weight.detach().cpu().double())
    sign = torch.where(core.R.diagonal() < 0, -1.0, 1.0)  # QR leaves each axis's sign free
    axes = (directions @ core.Q * sign).float()
    nothing = torch.zeros(rank, weight.shape[1])
    return InitialFactors(A=nothing, B=axes, trainable=("A",), mask=torch.ones_like(nothing).triu())


def qr_direct(weight: Tensor, Q: Tensor | None, rank: int, generator: torch.Generator | None = None) -> InitialFactors:
    """A starts at Q^T and B at R^T = W Q, with W_comp beneath; both trained (paper, 4.3 and fig. 8).

    Args:    weight (o, i), Q (i, r).
    Raises:  ValueError: Q missing or of another shape.
    """
    directions = _checked_directions(Q, weight.shape[1], rank, "input")
    core = weight.detach().cpu().float() @ directions
    return InitialFactors(A=directions.T.contiguous(), B=core, trainable=("A", "B"), subtract_start=True)


def lora(weight: Tensor, Q: Tensor | None, rank: int, generator: torch.Generator | None = None) -> InitialFactors:
    """A uniform in +-1/sqrt(i), B zero; both trained (arXiv 2106.09685, with PEFT's initial A).

    Args:    weight (o, i); Q is not used.
    """
    outputs, inputs = weight.shape
    A = (torch.rand(rank, inputs, generator=generator) * 2 - 1) * inputs**-0.5
    return InitialFactors(A=A, B=torch.zeros(outputs, rank), trainable=("A", "B"))


def ortha(weight: Tensor, Q: Tensor | None, rank: int, generator: torch.Generator | None = None) -> InitialFactors:
    """A = Q^T frozen, orthonormal and the slot's own; B trained from zero (Orthogonal Adaptation, arXiv 2312.02432).

    Two adapters of different slots have A_1 A_2^T = 0: neither acts on the inputs of the other.

    Args:    weight (o, i), Q (i, r) = slot_directions(i, r, slot).
    Raises:  ValueError: Q missing or of another shape.
    """
    return qr(weight, Q, rank, generator)


def pissa(weight: Tensor, Q: Tensor | None, rank: int, generator: torch.Generator | None = None) -> InitialFactors:
    """A_0 = sqrt(S_r) V_r^T, B_0 = U_r sqrt(S_r) with the rest of W beneath; both trained (arXiv 2404.02948).

    As qr_direct, with the singular values shared evenly. The update is B A - B_0 A_0: of two such adapters that were
    summed without it, the principal part would count twice.

    Args:    weight (o, i), Q (i, r): the leading right singular vectors.
    Raises:  ValueError: Q missing or of another shape.
    """
    directions = _checked_directions(Q, weight.shape[1], rank, "input")
    core = weight.detach().cpu().float() @ directions  # U_r S_r
    root = core.norm(dim=0).sqrt()
    shared = torch.where(root > 0, core / root, 0.0)
    return InitialFactors(A=root[:, None] * directions.T, B=shared, trainable=("A", "B"), subtract_start=True)


def olora(weight: Tensor, Q: Tensor | None, rank: int, generator: torch.Generator | None = None) -> InitialFactors:
    """B_0 and A_0 are the first r columns and rows of W's QR, with the rest beneath; both trained (arXiv 2406.01775).

    Args:    weight (o, i); Q is not used.
    """
    exact = torch.linalg.qr(weight.detach().cpu().double())
    A, B = exact.R[:rank].float().contiguous(), exact.Q[:, :rank].float().contiguous()
    return InitialFactors(A=A, B=B, trainable=("A", "B"), subtract_start=True)


def _checked_directions(Q: Tensor | None, size: int, rank: int, side: str) -> Tensor:
    """A method's directions Q on the CPU in float32. Raises ValueError unless it is (size, rank)."""
    if Q is None or tuple(Q.shape) != (size, rank):
        found = "none" if Q is None else f"shape {tuple(Q.shape)}"
        raise ValueError(f"needs {rank} leading {side} directions of shape ({size}, {rank}), got {found}")
    return Q.detach().cpu().float()


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("qr", "input", True, qr, "arXiv 2507.04599, eq. 5-6"),
        Method("qr-output", "output", True, qr_output, "arXiv 2507.04599, the authors' code"),
        Method(
            "qr-triangular",
            "output",
            True,
            qr_triangular,
            "arXiv 2507.04599, the authors' code",
            reads_weight=True,
            triangular=True,
        ),
        Method("qr-direct", "input", False, qr_direct, "arXiv 2507.04599, section 4.3 and figure 8", reads_weight=True),
        Method("lora", None, False, lora, "arXiv 2106.09685"),
        Method(
            "qr-contrast",
            "input",
            True,
            qr,
            "docs/findings_first_edition.md",
            directions=contrastive_directions,
            needs_example=True,
        ),
        Method(
            "qr-minor",
            "input",
            True,
            qr,
            "qr on the directions of arXiv 2406.09044",
            directions=minor_input_directions,
        ),
        Method(
            "ortha",
            "input",
            True,
            ortha,
            "arXiv 2312.02432",
            directions=orthogonal_slot_directions,
            has_slots=True,
            shares_basis=False,
        ),
        Method("pissa", "input", False, pissa, "arXiv 2404.02948", reads_weight=True),
        Method("olora", None, False, olora, "arXiv 2406.01775", reads_weight=True),
    )
}
