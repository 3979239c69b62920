"""Table 2: forward pass and gradient of each method, checked by autograd on a base's layers."""

import torch
from torch import Tensor, nn

from ..basis import Basis, Weights
from ..comparison.figure_data import ReproducedResult
from ..comparison.summary_tables import TableRow
from ..initialisation_methods import METHODS, DirectionSources
from ..injection import initialise
from ..linalg import leading_subspace
from .request import ReproductionRequest

FORWARD = {
    "lora": "X (W + B A)^T",
    "ortha": "X (W + B Q^T)^T",
    "qr": "X (W_comp + (Q (R + dR))^T)^T",
    "qr-output": "X (W_comp + Q (R + dR))^T",
}
"""The paper's forward passes, with PyTorch's W (o, i)."""
GRADIENT = {
    "lora": {"A": "B^T dL/dW", "B": "dL/dW A^T"},
    "ortha": {"B": "dL/dW Q"},
    "qr": {"B": "(Q^T (dL/dW)^T)^T"},
    "qr-output": {"A": "Q^T dL/dW"},
}


def table2(request: ReproductionRequest) -> ReproducedResult:
    """Forward and gradient of LoRA, Ortha and QR-LoRA in both readings, by autograd on every layer of a base against
    the formulas in float64; during training, and at its first update."""
    base = request.base_model
    rank = request.rank or base.defaults.rank
    weights = dict(base.weights(base.defaults.targets))
    errors: dict[str, list[dict[str, float]]] = {name: [] for name in FORWARD}
    generator = torch.Generator().manual_seed(request.seed)
    for weight in weights.values():
        for name, found in errors.items():
            found.append(_layer_errors(name, weight.cpu().float(), min(rank, *weight.shape), generator))
    rows: list[TableRow] = []
    for name, found in errors.items():
        learns = {f"d{factor}": formula for factor, formula in GRADIENT[name].items()}
        rows.append(
            {
                "method": name,
                "forward": FORWARD[name],
                "gradient": "; ".join(f"{k} = {v}" for k, v in learns.items()),
                "error forward": max(x["forward"] for x in found),
                "error gradient": max(x["gradient"] for x in found),
                "gradient of A at the start": max(x["A at the start"] for x in found) if "dA" in learns else "frozen",
                "gradient of B at the start": max(x["B at the start"] for x in found) if "dB" in learns else "frozen",
            }
        )
    notes = (
        f"Largest relative error over {len(weights)} layers of {request.base}, rank {rank}: autograd of the adapter on "
        "the layer (float32) against the formula (float64). Gradients at the start: largest share of |dL/dW|.",
        "Ortha stands here as its authors have it, Q a block of one random orthogonal basis and B learning from zero; "
        "the paper's column prints another method, a frozen Gaussian B and a learning A.",
    )
    return ReproducedResult("Table 2: forward pass and gradient", rows, notes)


def _layer_errors(method: str, weight: Tensor, rank: int, generator: torch.Generator) -> dict[str, float]:
    """Relative errors of the paper's formulas for one layer, W (o, i)."""
    outputs, inputs = weight.shape
    x, target = (torch.randn(16, size, generator=generator) for size in (inputs, outputs))
    row = METHODS[method]
    weights = Weights({"layer": (outputs, inputs)}, lambda _layer: weight)
    sources = DirectionSources(
        weights, rank, 0, lambda: Basis({"layer": leading_subspace(weight, rank, row.side or "")}, rank, row.side or "")
    )
    Q = row.directions(sources).Q["layer"] if row.side else None
    layer = nn.Linear(inputs, outputs, bias=False)
    layer.weight.data.copy_(weight)
    model = nn.ModuleDict({"layer": layer})
    start = row.start(weight, Q, rank, generator)
    initialise(model, {"layer": start}, "learning")
    A, B = (getattr(model["layer"], name)["learning"] for name in "AB")
    W, X, T = weight.double(), x.double(), target.double()

    def gradients() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The layer's output, dL/dW in float64 for L = |Y - T|^2 / 2, and autograd's gradients of the factors."""
        answer = model["layer"](x)
        ((answer - target).square().sum() / 2).backward()
        effective = W + B.detach().double() @ A.detach().double()
        found = {name: f.grad.double().clone() for name, f in (("A", A), ("B", B)) if f.grad is not None}
        A.grad = B.grad = None
        return answer.detach().double(), (X @ effective.T - T).T @ X, found

    _, of_weight, first = gradients()
    for factor in (A, B):
        if factor.requires_grad:
            factor.data += 0.1 * weight.std() * torch.randn(factor.shape, generator=generator)
    answer, of_weight_then, then = gradients()
    a, b = A.detach().double(), B.detach().double()
    told = {"A": b.T @ of_weight_then, "B": of_weight_then @ a.T}
    return {
        "forward": _relative_error(answer, _paper_forward(method, X, W, a, b, Q)),
        "gradient": max(_relative_error(then[name], told[name]) for name in then),
        **{f"{k} at the start": float(first[k].norm() / of_weight.norm()) if k in first else 0.0 for k in "AB"},
    }


def _paper_forward(method: str, X: Tensor, W: Tensor, A: Tensor, B: Tensor, Q: Tensor | None) -> Tensor:
    """The paper's forward formula, with its W_comp and R, which the library never forms."""
    if Q is None:
        return X @ (W + B @ A).T
    basis = Q.double()
    if method == "ortha":
        return X @ (W + B @ basis.T).T
    if METHODS[method].side == "input":
        R = basis.T @ W.T
        return X @ (W - (basis @ R).T + (basis @ (R + B.T)).T).T
    R = basis.T @ W
    return X @ (W - basis @ R + basis @ (R + A)).T


def _relative_error(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / true.norm())
