"""Section 5: seconds of initialising each method's adapter: ours, the paper's equations literally, other methods."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ..comparison.figure_data import ReproducedResult
from ..comparison.summary_tables import TableRow
from ..devices import choose_device
from ..estimate.time_blocks import median_seconds
from ..families.base_without_weights import blank_base
from ..families.public_configs import PUBLIC
from ..initialisation_methods import METHODS
from ..linalg import leading_subspace
from .published_numbers import INITIALISATION
from .request import ReproductionRequest

METHODS_TIMED = ("qr", "qr-direct", "pissa", "olora", "lora")
WHOLE_SVD = "qr, by a whole SVD"


def initialisation(request: ReproductionRequest) -> ReproducedResult:
    """Seconds to initialise all target layers of a content adapter. A public model's name needs no download."""
    device = choose_device(request.device)
    public = request.base in PUBLIC
    base = blank_base(request.base)[0] if public else request.base_model
    own = base.defaults.for_run("content", "qr")
    layers = [(x.out_features, x.in_features) for x in base.target_layers(own.targets).values()]
    weights = _gaussian_weights(layers, device) if public else ((w.float(), 1) for _, w in base.weights(own.targets))
    rank = request.rank or own.rank
    seconds_by_method = dict.fromkeys((METHODS_TIMED[0], WHOLE_SVD, *METHODS_TIMED[1:]), 0.0)
    for k, (weight, count) in enumerate(weights):
        for method in seconds_by_method:
            seconds_by_method[method] += count * median_seconds(
                partial(initialise_layer, method, weight, rank), device, 1
            )
        if request.on_job is not None:
            request.on_job(k + 1, len(set(layers)) if public else len(layers), f"{tuple(weight.shape)}", "")
    about = {"base": request.base, "layers": len(layers), "rank": rank}
    rows: list[TableRow] = [
        {**about, "start": method, "seconds": s, "times qr": s / seconds_by_method["qr"]}
        for method, s in seconds_by_method.items()
    ]
    for name, paper in INITIALISATION.items():
        rows.append(
            {"base": name, "layers": "", "rank": 64, "start": "the paper's figure", "seconds": paper, "times qr": ""}
        )
    notes = (
        f"On {device}, {torch.get_num_threads()} threads. "
        + (
            "One Gaussian weight of each shape, times how many layers have it: such spectra are the slowest for qr. "
            if public
            else "Each layer's own weight. "
        )
        + f'"{WHOLE_SVD}": equations 3 to 6, with the rest of the weight, which the library never forms.',
        "Each once, after one run to warm up. A base's directions are kept on disk, so that qr pays once for a base. "
        "The paper says about 1, 2 and 5 minutes and trains on an A800 GPU. `--base flux-dev` needs no download.",
    )
    return ReproducedResult(f"Section 5: the cost of initialisation, {request.base}", rows, notes)


def initialise_layer(method: str, weight: Tensor, rank: int) -> None:
    """Initialise one layer's factors, whose cost is measured, with the singular directions if the method needs them."""
    if method == WHOLE_SVD:
        initialise_as_in_paper(weight, rank)
        return
    side = METHODS[method].side
    METHODS[method].start(weight, None if side is None else leading_subspace(weight, rank, side), rank, None)


def initialise_as_in_paper(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Initialise as the paper's equations say, whose cost is measured: Q (i, r), R (r, o) and W_comp (o, i) of W (o,
    i): arXiv 2507.04599, eq. 3-6, in float32."""
    U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
    Q, triangle = torch.linalg.qr(Vh[:rank].T * S[:rank])
    R = triangle @ U[:, :rank].T
    return Q, R, weight - (Q @ R).T


def _gaussian_weights(layers: list[tuple[int, int]], device: torch.device) -> Iterator[tuple[Tensor, int]]:
    """(a Gaussian weight, how many layers have its shape) for each shape."""
    return ((torch.randn(shape, device=device), layers.count(shape)) for shape in dict.fromkeys(layers))
