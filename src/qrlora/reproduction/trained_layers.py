"""Table 3: the target layers of each base, and how many parameters qr and LoRA train on them."""

from ..comparison.figure_data import ReproducedResult
from ..comparison.summary_tables import TableRow
from ..families import Base
from ..families.base_without_weights import blank_base
from ..initialisation_methods import METHODS
from ..layouts import LAYOUTS
from .request import ReproductionRequest


def table3(request: ReproductionRequest) -> ReproducedResult:
    """Table 3, trained layers: target layers and trainable parameters of the public models and of a base, from the
    layers' shapes alone."""
    rows: list[TableRow] = []
    names: list[str] = [next(iter(layout.variants)) for layout in LAYOUTS.values() if layout.paper_presets]
    for name in names if request.base in names else [*names, request.base]:
        base, _, _ = blank_base(name)
        presets = base.family.layout.paper_presets if name in names else (base.defaults.targets,)
        for preset in presets:
            rows.append(_layer_count_row(name, base, preset, request.rank or base.defaults.rank))
    notes = (
        "Rank 64 for the public models, as in the paper. For SDXL the paper's text says self-attention only, its table "
        "names no attention: both readings. The paper prints the names of the layers, no counts; it says that half of "
        "LoRA's parameters are trained, which is so where layers are square.",
    )
    return ReproducedResult("Table 3: target layers and trainable parameters", rows, notes)


def _layer_count_row(name: str, base: Base, preset: str, rank: int) -> TableRow:
    """A row of table 3: the layers that are trained on a base, and the parameters of qr and LoRA on them."""
    endings = base.family.targets.get(preset, preset.split(","))
    shapes = [(x.out_features, x.in_features) for x in base.target_layers(preset).values()]
    counts = {m: sum(METHODS[m].trainable_parameters(o, i, rank) for o, i in shapes) for m in ("qr", "lora")}
    return {
        "base": name,
        "preset": preset if len(preset) < 20 else "its own",
        "layer types": " ".join(endings),
        "layers": len(shapes),
        "rank": rank,
        **{f"{m} trains": n for m, n in counts.items()},
        "share": counts["qr"] / counts["lora"],
    }
