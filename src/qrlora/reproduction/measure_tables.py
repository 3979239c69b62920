"""The findings' tables of how strict the measures of a fusion are, and how far they agree."""

from ..comparison.figure_data import ReproducedResult
from ..comparison.measure_agreement import (
    MAX_FALSE_ALARMS,
    MEASURES,
    agreement,
    split_by_content,
    strictness,
    thresholds_of,
)
from ..comparison.measured_examples import ENCODERS, LABELS, SCORES, chosen_targets, measure_targets
from ..comparison.row_file import RowFile, read_rows
from .request import ReproductionRequest


def measures(request: ReproductionRequest) -> ReproducedResult:
    """In how many hundredths each measure takes images for a target, true ones and wrong fusions of each kind.

    The request's pairs are targets to report, about; as many more are for thresholds. Its encoders: none, or both of
    the second opinions.

    Raises: ValueError: other encoders.
    """
    if request.encoders and set(request.encoders) != set(ENCODERS):
        raise ValueError(f"the measures' encoders are {','.join(ENCODERS)}, or none, got {','.join(request.encoders)}")
    targets = chosen_targets(2 * request.pairs)
    folder = request.folder / "measures"
    folder.mkdir(parents=True, exist_ok=True)
    rows = RowFile(folder / ("rows-encoders.csv" if request.encoders else "rows.csv"), LABELS, SCORES)
    measure_targets(targets, request.base_model, rows, bool(request.encoders), request.on_job)
    wanted = set(targets)
    halves = split_by_content(
        [row for row in read_rows(rows.path) if (row["target content"], row["target style"]) in wanted]
    )
    if not all(halves):
        raise ValueError(f"{request.pairs} pairs are too few: all targets are in one half of the contents")
    thresholds = thresholds_of(halves[0])
    told = ", ".join(f"{name} {value:g}" for name, value in thresholds.items())
    table, lines = strictness(halves[1], thresholds), agreement(halves[1], thresholds)
    notes = (
        f"In hundredths, what is taken for the target, of {len(halves[1]['true'])} targets that the classifiers were "
        "not trained on. " + "; ".join(f"{name}: {MEASURES[name]}" for name in table[0] if name in MEASURES) + ".",
        f"Thresholds: {told}: the lowest at which {100 * MAX_FALSE_ALARMS:g} % or less of the wrong fusions of "
        f"{len(halves[0]['true'])} other targets pass, of other contents.",
    )
    return ReproducedResult("How strict the measures are", table, notes, further={"How far they agree": lines})
