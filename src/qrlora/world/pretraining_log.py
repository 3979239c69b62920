"""The log of a pre-training run, ``log.jsonl``: a row for every so many steps, from which its card shows the curve."""

import json
from pathlib import Path
from typing import Any

import torch

from ..text_files import read_text, write_text
from .pretraining_state import PretrainingRun

LOG_EVERY = 50
"""Steps whose mean loss is a row of the log."""
CURVE_ROWS = 13
"""Rows of the log that a card shows at most."""


def log_losses(run: PretrainingRun, steps_per_second: float, log: Path) -> None:
    """Write and print a row of the log: the mean of the latest losses of pre-training, and its speed.

    Args:   steps_per_second: of this call; 0: it took none, and tells what one that was killed had not.
    Raises: ValueError: the loss is no finite number.
    """
    mean, batch_size = float(torch.stack(run.losses).mean()), run.settings.batch_size
    run.losses.clear()
    if not mean < float("inf"):
        raise ValueError(f"the loss is {mean} at step {run.step}; start again with a lower --learning-rate")
    left = (run.settings.steps - run.step) / steps_per_second / 60 if steps_per_second else 0.0
    row = {"step": run.step, "samples": run.step * batch_size, "loss": round(mean, 4)}
    row |= {"samples_per_second": round(steps_per_second * batch_size, 1), "minutes_left": round(left, 1)}
    with log.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(row, flush=True)


def read_log(log: Path) -> list[dict[str, Any]]:
    """The rows of a log, each step's last one, without the half row that a killed run may have left at the end.

    Raises: OSError.  ValueError: another row is not readable.
    """
    lines, rows = read_text(log).splitlines(), {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows[row["step"]] = row
        except (ValueError, TypeError, KeyError) as error:
            if number < len(lines):
                raise ValueError(f"{log}, line {number}: no row of a log of pre-training: {line:.80}") from error
    return [rows[step] for step in sorted(rows)]


def drop_rows_beyond(log: Path, step: int) -> None:
    """Take from a log the rows of later steps than that from which the run goes on: these steps are taken again."""
    if log.exists():
        kept = [json.dumps(row) + "\n" for row in read_log(log) if row["step"] <= step]
        write_text(log, "".join(kept))


def loss_curve(rows: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """(images seen, loss) of at most `CURVE_ROWS` rows of a log, evenly spaced, the first and the last among them."""
    count = min(len(rows), CURVE_ROWS)
    chosen = [rows[round(k * (len(rows) - 1) / max(1, count - 1))] for k in range(count)]
    return [(row["samples"], row["loss"]) for row in chosen]
