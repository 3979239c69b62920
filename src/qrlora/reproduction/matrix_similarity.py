"""Table 4 with figure 2, figures 3 and 14 to 16: cosines of the matrices trained on a pair's two images."""

import statistics
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..adapter import Adapter
from ..analysis import similarity
from ..comparison.figure_data import Curves, LayerCurves, ReproducedResult
from ..comparison.image_pairs import Pair
from ..comparison.statistics import in_hundredths, mean_over_pairs, paired_difference
from ..comparison.summary_tables import TableRow
from ..comparison.training_settings import REFERENCE_METHOD
from .published_numbers import COSINES, TABLE_4, TABLE_4_COLUMNS
from .request import ReproductionRequest

OTHER_SEED = ", other seed"
MATRICES = (
    *("Q", "R", "dR", "dR, other seed", "A", "A, other seed", "B", "B, other seed"),
    *("dW of qr", "dW of lora", "dW of lora, other seed"),
)
"""The paper's matrices, and others that it does not show: those of two runs with different seeds, and the whole updates
dW, which are comparable between methods."""
PAIRS_SHOWN = 5
"""Pairs in figures 14 to 16."""
NOTES = (
    "Each matrix is compared between the adapter of a pair's content picture and that of its style picture, on the "
    "same layers. Q and R: method qr-direct; dR: qr; A and B: lora.",
    "The paper's A are alike because both runs start from the same random numbers, which A hardly leaves: "
    'those of "other seed" are of a style adapter that starts from others, and sees other noise, than the content '
    "adapter. Q and R start at the same values for any seed, dR at zero.",
)


def table4(request: ReproductionRequest) -> ReproducedResult:
    """Table 4, similarity of trained matrices: largest and smallest cosine over layers for every pair, beside the
    paper's means."""
    rows: list[TableRow] = []
    pairs = request.benchmark_pairs()
    of_pairs = _cosines_of_pairs(request, pairs)
    for k, (pair, cosines) in enumerate(zip(pairs, of_pairs, strict=True)):
        row: TableRow = {"pair": str(k), "pictures": pair.name}
        for name in MATRICES:
            row |= {f"{name} max": max(cosines[name].values()), f"{name} min": min(cosines[name].values())}
        rows.append(row)
    figures = [name for name in rows[0] if name.endswith((" max", " min"))]
    lines = {
        end: {n: (list(range(len(rows))), [row[f"{n} {end}"] for row in rows]) for n in MATRICES}
        for end in ("max", "min")
    }
    panels = {"largest cosine of all layers": lines["max"], "smallest cosine of all layers": lines["min"]}
    mean: TableRow = {name: statistics.fmean(row[name] for row in rows) for name in figures}
    columns = zip(*TABLE_4, strict=True)
    papers = {name: statistics.fmean(column) for name, column in zip(TABLE_4_COLUMNS, columns, strict=True)}
    rows.append({"pair": "mean", "pictures": f"{len(rows)} pairs", **mean})
    rows.append({"pair": "paper", "pictures": "mean of 27 pairs, SDXL", **{n: papers.get(n, "") for n in figures}})
    title = "Table 4 and figure 2: cosines between the matrices of two pictures"
    return ReproducedResult(
        title,
        rows,
        (*NOTES, "Max and min: over all layers."),
        Curves(panels, "pair", "cosine"),
        further={"Mean over layers, in hundredths, with intervals (95 %) over pairs": _means_over_layers(of_pairs)},
    )


def _means_over_layers(of_pairs: Sequence[Mapping[str, Mapping[str, float]]]) -> list[TableRow]:
    """A row for each matrix: the mean cosine of its layers, over pairs; and the difference that another seed makes."""
    rows: list[TableRow] = []
    for name in MATRICES:
        means = [statistics.fmean(cosines[name].values()) for cosines in of_pairs]
        row = {"matrix": name, "mean": in_hundredths(mean_over_pairs(means)), "less the same seed": ""}
        if name.endswith(OTHER_SEED):
            same = [statistics.fmean(cosines[name.removesuffix(OTHER_SEED)].values()) for cosines in of_pairs]
            row["less the same seed"] = in_hundredths(paired_difference(means, same))
        rows.append(row)
    return rows


def figure3(request: ReproductionRequest) -> ReproducedResult:
    """The same for one pair, layer by layer: training Q and R beside training dR alone."""
    parts = {"Q and R trained": ("Q", "R"), "dR alone trained": ("dR",)}
    return _layerwise_cosines(request, "Figure 3", request.benchmark_pairs()[:1], lambda pair: parts)


def figure14(request: ReproductionRequest) -> ReproducedResult:
    """Figures 14 to 16, similarity of trained matrices: cosines over the layers for the first five pairs."""
    return _layerwise_cosines(
        request, "Figures 14 to 16", request.benchmark_pairs()[:PAIRS_SHOWN], lambda pair: {pair.name: tuple(COSINES)}
    )


def _layerwise_cosines(
    request: ReproductionRequest, name: str, pairs: Sequence[Pair], parts: Callable[[Pair], Mapping[str, Sequence[str]]]
) -> ReproducedResult:
    """A row of matrix similarities for each pair and layer. Args: parts: (pair) -> {axis label: matrices whose curves
    it shows}."""
    targets = request.base_model.defaults.for_run("content", REFERENCE_METHOD).targets
    layers = list(request.base_model.target_layers(targets))  # in the model's order; files are sorted by name
    rows: list[TableRow] = []
    curves = {}
    for pair, cosines in zip(pairs, _cosines_of_pairs(request, pairs), strict=True):
        rows += [{"pictures": pair.name, "layer": x, **{m: cosines[m][x] for m in MATRICES}} for x in layers]
        for label, matrices in parts(pair).items():
            curves[label] = {m: [cosines[m][x] for x in layers] for m in matrices}
    ranges = "; ".join(
        f"{m} {min(row[m] for row in rows):.2f} to {max(row[m] for row in rows):.2f} (paper {low:.2f} to {high:.2f})"
        for m, (low, high) in COSINES.items()
    )
    notes = (*NOTES, f"Over layers: {ranges}; the paper's are over layers, pairs and its three models.")
    title = f"{name}: cosines layer by layer, {request.base}"
    return ReproducedResult(title, rows, notes, LayerCurves(layers, curves))


def _cosines_of_pairs(request: ReproductionRequest, pairs: Sequence[Pair]) -> list[Mapping[str, Mapping[str, float]]]:
    """The similarity of the matrices trained on each pair: {matrix: {layer: cosine}}."""
    jobs = {}
    for k, pair in enumerate(pairs):
        for method in ("qr", "qr-direct", "lora"):
            jobs[k, method, "content"] = request.train_job(pair.content, "content", method)
            jobs[k, method, "style"] = request.train_job(pair.style, "style", method, layers_of="content")
        for method in ("qr", "lora"):
            jobs[k, method, "other"] = request.train_job(pair.style, "style", method, seed=1, layers_of="content")
    adapters = request.train_or_load_adapters(jobs)
    found = []
    for k in range(len(pairs)):
        qr, direct, lora = ((adapters[k, m, "content"], adapters[k, m, "style"]) for m in ("qr", "qr-direct", "lora"))
        cosines = {"Q": _factor_cosines(*direct, "A"), "R": _factor_cosines(*direct, "B")}
        other = {method: adapters[k, method, "other"] for method in ("qr", "lora")}
        for seed, qr_style, lora_style in (("", qr[1], lora[1]), (OTHER_SEED, other["qr"], other["lora"])):
            cosines[f"dR{seed}"] = _factor_cosines(qr[0], qr_style, "B")
            cosines |= {f"{x}{seed}": _factor_cosines(lora[0], lora_style, x) for x in ("A", "B")}
            cosines[f"dW of lora{seed}"] = {row.layer: row.update for row in similarity(lora[0], lora_style)}
        found.append({**cosines, "dW of qr": {row.layer: row.update for row in similarity(*qr)}})
    return found


def _factor_cosines(first: Adapter, second: Adapter, factor: str) -> dict[str, float]:
    """Similarity of one factor of two adapters: its cosine, flattened, in every layer. An adapter of qr-direct is [A;
    A_0], [B, -B_0]: its first r rows and columns are the trained factors."""

    def trained_factor(adapter: Adapter, layer: str) -> Tensor:
        pair, rank = adapter.layers[layer], adapter.header.rank
        return (pair.A[:rank] if factor == "A" else pair.B[:, :rank]).flatten().double()

    return {
        x: float(torch.cosine_similarity(trained_factor(first, x), trained_factor(second, x), dim=0))
        for x in first.layers
    }
