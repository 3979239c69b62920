"""What `qrlora train` does around training: progress, previews, the closing lines."""

import json
import os
from pathlib import Path
from typing import Any

from .. import output_files, plots, training
from ..config import TrainConfig, as_dict
from . import console


def train(config: TrainConfig) -> None:
    """Learn an adapter with a bar, and say how to draw with it. Of several processes, the main one speaks.

    Raises: as `training.train`.
    """
    if not training.is_rank_zero():
        training.train(config, on_preview=lambda _step, _picture: None)
        return
    output, learnt = Path(config.output), []
    with console.progress(output.stem) as bar:

        def on_step(progress: training.Progress) -> None:
            learnt.append(progress.step)
            bar.step(progress.step, progress.steps, f"loss {progress.loss:.4f}")

        def on_preview(step: int, picture: Any) -> None:
            with output_files.dispensable("the training goes on without this preview"):
                _save_preview(config, step, picture)

        adapter = training.train(config, on_step=on_step, on_preview=on_preview, on_stage=bar.stage)
    known = "" if learnt else ", done before: the file is left as it is (--overwrite learns it anew)"
    console.say(f"{output}: {len(adapter.layers)} layers, rank {adapter.rank}, {console.size(output)}{known}")
    if learnt and training.world_size() > 1:
        console.say(f"learnt by {training.world_size()} processes")
    console.say(f"draw with it: {console.command('generate', config.prompt, output)}")


def _save_preview(config: TrainConfig, step: int, picture: Any) -> None:
    """Beside the output; over the one that this very command drew before it was stopped, but over no other."""
    output, told = Path(config.output), json.dumps(as_dict(config))
    path = output.with_name(f"{output.stem}-{step:05}.png")
    own = config.overwrite or plots.made_with(path) == told
    plots.save_picture(picture, path if own else output_files.numbered(path, os.path.lexists), told)
