"""A pre-trained base as a folder that opens like any other: a stock pipeline, and how it was trained."""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from ..built_in_bases import folder_of
from ..text_files import write_text
from .drawings import KNOWN_HANDS, count_drawings, hands_of_excerpt, known_contents
from .model_folders import check_replaceable, replaced_folder
from .pretraining_log import loss_curve, read_log
from .pretraining_state import PretrainingRun


def write_pipeline(run: PretrainingRun, folder: Path) -> None:
    """Write the pre-trained base with averaged weights as a stock pipeline's folder, in float16.

    Nothing of the run is in it: no path of where its VAE was read, nor the length that captions were padded to.
    """
    pipe = run.averaged_pipeline().to("cpu")
    for component in pipe.components.values():
        if isinstance(component, nn.Module):
            component.half()
        elif tokenizer := getattr(component, "backend_tokenizer", None):
            tokenizer.no_padding()
            tokenizer.no_truncation()
    logging.disable_progress_bar()
    pipe.save_pretrained(folder)
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        if path.parent.name.startswith("text_encoder"):  # transformers opens in the dtype that is written here
            config["dtype"] = "float32"
        write_text(path, json.dumps(config, indent=2) + "\n")


def device_name(device: str) -> str:
    return f"{os.cpu_count()} cores" if device == "cpu" else torch.cuda.get_device_name(device)


def training_record_of(run: PretrainingRun, log: Path, within: float = 0.0) -> dict[str, Any]:
    """What ``training.json`` says of a run: settings, loss curve, drawings; and of the base that it started from.

    Args: log: the run's ``log.jsonl``.  within: as of `pretrain`.
    """
    rows = read_log(log)
    speeds = [row["samples_per_second"] for row in rows if row["samples_per_second"] > 0]
    hours = rows[-1]["samples"] / median(speeds) / 3600 if speeds else 0.0
    return {
        "settings": asdict(run.settings) | {"start": Path(run.settings.start).name},
        **({"within": within} if within else {}),
        "optimizer": " and ".join(type(optimizer).__name__ for optimizer in run.optimizers),
        "machine": f"on {device_name(run.device)}, about {hours:.2g} hours.",
        "shown": run.step * run.settings.batch_size,
        "drawings": count_drawings(KNOWN_HANDS, known_contents()),
        "excerpt": bool(hands_of_excerpt(KNOWN_HANDS)),
        "loss": loss_curve(rows),
        **({"before": run.before} if run.before else {}),
    }


def export_base(
    run: PretrainingRun, log: Path, folder: Path, within: float = 0.0, overwrite: bool = False
) -> dict[str, Any]:
    """Write the pre-trained base with averaged weights, the built-in base's settings of adapters, and
    ``training.json`` for its model card: the whole folder or nothing. Returns: the latter's content.

    Args:   log, within: as of `training_record_of`.  overwrite: whether a base in the folder may be replaced.
    Raises: OSError.  ValueError: the run has not taken a step.
    """
    check_replaceable(folder, overwrite)
    if run.step == 0:
        raise ValueError(f"{run.base} was not trained for a single step, so that it is not written: give more time")
    record = training_record_of(run, log, within)
    settings = [path for place in (folder, folder_of(run.base)) if (path := place / "qrlora.json").is_file()]
    with replaced_folder(folder) as new:
        write_pipeline(run, new)
        write_text(new / "training.json", json.dumps(record) + "\n")
        for path in settings[:1]:
            shutil.copyfile(path, new / path.name)
    return record
