"""Figures 7, 17 to 19, and 10: the fused image by the strengths of the adapters and by their rank."""

from .. import evaluation
from ..comparison.figure_data import Curves, ReproducedResult, StrengthGrid
from ..comparison.summary_tables import TableRow, summarise
from ..sampling import grid
from ..world.ground_truth import true_image
from ..world.image_tensors import tensor_from_pil
from .request import ReproductionRequest

STRENGTHS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Appendix D.1: from 0.5 to 1.0 by 0.1, for content and style."""
RANKS = (1, 2, 4, 8, 16, 32, 64)
SCORES_SHOWN = ("both", "content_likeness", "style_likeness", "ssim")


def figure7(request: ReproductionRequest) -> ReproducedResult:
    """Figure 7, strengths: every pair of the two adapters' strengths for the first pair of images, one seed."""
    pair = request.benchmark_pairs()[0]
    assert pair.truth is not None
    jobs = {
        role: request.train_job(shown, role, "qr") for role, shown in (("content", pair.content), ("style", pair.style))
    }
    adapters = request.train_or_load_adapters(jobs)
    pictures = grid(
        request.base_model, pair.prompt, adapters["content"], adapters["style"], STRENGTHS, STRENGTHS, seed=request.seed
    )
    truth = tensor_from_pil([true_image(pair.truth.content, pair.truth.style)])[0]
    known = (pair.truth.content, pair.truth.style, pair.style.content, pair.content.style)
    rows: list[TableRow] = []
    for strength, line in zip(STRENGTHS, pictures, strict=True):
        scores = evaluation.ground_truth_scores(tensor_from_pil(line), truth, *known)
        for other, score in zip(STRENGTHS, scores, strict=True):
            rows.append({"content strength": strength, "style strength": other, **score})
    notes = (f"{pair.name}; one seed. The paper shows pictures without numbers.",)
    figure = StrengthGrid(pictures, STRENGTHS, STRENGTHS)
    return ReproducedResult(f"Figures 7 and 17 to 19: strengths, {request.base}", rows, notes, figure)


def figure10(request: ReproductionRequest) -> ReproducedResult:
    """Figure 10, ranks: the fusion comparison with qr at several ranks."""
    base = request.base_model
    targets = [base.defaults.for_run(role, "qr").targets for role in ("content", "style")]
    most = min(min(layer.weight.shape) for x in targets for layer in base.target_layers(x).values())
    variants = {f"qr:rank={rank}": rank for rank in RANKS if rank <= most}
    summary = request.run_fusion_comparison(tuple(variants))
    table = [row for row in summarise(summary).table if row["score"] in SCORES_SHOWN]
    kept = ("method", "score", "value", "value: low", "value: high", "pairs")
    rows: list[TableRow] = [{"rank": variants.get(row["method"], ""), **{k: row[k] for k in kept}} for row in table]
    lines, bands = {}, {}
    for score in SCORES_SHOWN:
        line = [row for row in rows if row["score"] == score and row["rank"]]
        lines[score] = ([row["rank"] for row in line], [row["value"] for row in line])
        bands[score] = ([row["value: low"] for row in line], [row["value: high"] for row in line])
    notes = (
        f"{summary.counts}. Steps and learning rate are those of the base's own rank.",
        "The paper shows pictures without numbers.",
    )
    return ReproducedResult("Figure 10: ranks", rows, notes, Curves({"": lines}, "rank", "mean over pairs", bands))
