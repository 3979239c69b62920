"""Table 4 with figure 2, figures 3 and 14 to 16: how alike the matrices are that a pair's two pictures have taught."""

import statistics
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..adapter import Adapter
from ..analysis import similarity
from ..comparison.figure_data import Curves, Layers, ReproducedResult
from ..comparison.image_pairs import Pair
from ..comparison.settings import REFERENCE
from ..comparison.summary_tables import Row
from .published_numbers import COSINES, TABLE_4, TABLE_4_COLUMNS
from .request import ReproductionRequest

MATRICES = ("Q", "R", "dR", "A", "A, other seed", "B", "dW of qr", "dW of lora")
"""The paper's, and two that it does not show: LoRA's A where the two runs start from different numbers, and the cosine
of the whole updates, which is the same question to every method."""
SAMPLES = 5
"""Pairs in figures 14 to 16."""
NOTES = (
    "Each matrix is compared between the adapter of a pair's content picture and that of its style picture, on the "
    "same layers. Q and R: method qr-direct; dR: qr; A and B: lora.",
    "The paper's A are alike because both runs start from the same random numbers, which A hardly leaves: "
    '"A, other seed" starts the second run from others. Q and R start at the same values for any seed.',
)


def table4(request: ReproductionRequest) -> ReproducedResult:
    """Largest and smallest cosine over layers for every pair, beside the paper's means."""
    rows: list[Row] = []
    pairs = request.world()
    for k, (pair, cosines) in enumerate(zip(pairs, _of_pairs(request, pairs), strict=True)):
        row: Row = {"pair": str(k), "pictures": pair.name}
        for name in MATRICES:
            row |= {f"{name} max": max(cosines[name].values()), f"{name} min": min(cosines[name].values())}
        rows.append(row)
    figures = [name for name in rows[0] if name.endswith((" max", " min"))]
    lines = {
        end: {n: (list(range(len(rows))), [row[f"{n} {end}"] for row in rows]) for n in MATRICES}
        for end in ("max", "min")
    }
    panels = {"largest cosine of all layers": lines["max"], "smallest cosine of all layers": lines["min"]}
    mean: Row = {name: statistics.fmean(row[name] for row in rows) for name in figures}
    columns = zip(*TABLE_4, strict=True)
    papers = {name: statistics.fmean(column) for name, column in zip(TABLE_4_COLUMNS, columns, strict=True)}
    rows.append({"pair": "mean", "pictures": f"{len(rows)} pairs", **mean})
    rows.append({"pair": "paper", "pictures": "mean of 27 pairs, SDXL", **{n: papers.get(n, "") for n in figures}})
    title = "Table 4 and figure 2: cosines between the matrices of two pictures"
    return ReproducedResult(title, rows, (*NOTES, "Max and min: over all layers."), Curves(panels, "pair", "cosine"))


def figure3(request: ReproductionRequest) -> ReproducedResult:
    """The same for one pair, layer by layer: what learns Q and R beside what learns dR alone."""
    parts = {"Q and R learnt": ("Q", "R"), "dR alone learnt": ("dR",)}
    return _layerwise(request, "Figure 3", request.world()[:1], lambda pair: parts)


def figure14(request: ReproductionRequest) -> ReproducedResult:
    """The same for the first five pairs."""
    return _layerwise(request, "Figures 14 to 16", request.world()[:SAMPLES], lambda pair: {pair.name: tuple(COSINES)})


def _layerwise(
    request: ReproductionRequest, name: str, pairs: Sequence[Pair], parts: Callable[[Pair], Mapping[str, Sequence[str]]]
) -> ReproducedResult:
    """A row for each pair and layer. Args: parts: (pair) -> {axis label: matrices whose curves it shows}."""
    targets = request.opened.defaults.for_run("content", REFERENCE).targets
    layers = list(request.opened.target_layers(targets))  # in the model's order; files are sorted by name
    rows: list[Row] = []
    curves = {}
    for pair, cosines in zip(pairs, _of_pairs(request, pairs), strict=True):
        rows += [{"pictures": pair.name, "layer": x, **{m: cosines[m][x] for m in MATRICES}} for x in layers]
        for label, matrices in parts(pair).items():
            curves[label] = {m: [cosines[m][x] for x in layers] for m in matrices}
    ranges = "; ".join(
        f"{m} {min(row[m] for row in rows):.2f} to {max(row[m] for row in rows):.2f} (paper {low:.2f} to {high:.2f})"
        for m, (low, high) in COSINES.items()
    )
    notes = (*NOTES, f"Over layers: {ranges}; the paper's are over layers, pairs and its three models.")
    title = f"{name}: cosines layer by layer, {request.base}"
    return ReproducedResult(title, rows, notes, Layers(layers, curves))


def _of_pairs(request: ReproductionRequest, pairs: Sequence[Pair]) -> list[Mapping[str, Mapping[str, float]]]:
    """For each pair {matrix: {layer: cosine}}."""
    jobs = {}
    for k, pair in enumerate(pairs):
        for method in ("qr", "qr-direct", "lora"):
            jobs[k, method, "content"] = request.lesson(pair.content, "content", method)
            jobs[k, method, "style"] = request.lesson(pair.style, "style", method, layers_of="content")
        jobs[k, "lora", "other"] = request.lesson(pair.style, "style", "lora", seed=1, layers_of="content")
    learnt = request.learnt(jobs)
    found = []
    for k in range(len(pairs)):
        qr, direct, lora = ((learnt[k, m, "content"], learnt[k, m, "style"]) for m in ("qr", "qr-direct", "lora"))
        found.append(
            {
                "Q": _cosines(*direct, "A"),
                "R": _cosines(*direct, "B"),
                "dR": _cosines(*qr, "B"),
                "A": _cosines(*lora, "A"),
                "A, other seed": _cosines(lora[0], learnt[k, "lora", "other"], "A"),
                "B": _cosines(*lora, "B"),
                "dW of qr": {row.layer: row.update for row in similarity(*qr)},
                "dW of lora": {row.layer: row.update for row in similarity(*lora)},
            }
        )
    return found


def _cosines(first: Adapter, second: Adapter, factor: str) -> dict[str, float]:
    """Cosine of one factor, flattened, in every layer. An adapter of qr-direct is [A; A_0], [B, -B_0]: its first r rows
    and columns are what has learnt."""

    def learnt(adapter: Adapter, layer: str) -> Tensor:
        pair, rank = adapter.layers[layer], adapter.header.rank
        return (pair.A[:rank] if factor == "A" else pair.B[:, :rank]).flatten().double()

    return {x: float(torch.cosine_similarity(learnt(first, x), learnt(second, x), dim=0)) for x in first.layers}
