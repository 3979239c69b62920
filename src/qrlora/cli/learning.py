"""What `qrlora train` does around training: progress, previews, the closing lines."""

import json
from pathlib import Path
from typing import Any

from .. import plots, training
from ..config import TrainConfig, as_dict
from . import console


def train(config: TrainConfig) -> None:
    """Learn an adapter with a bar, and say how to draw with it. Of several processes, the main one speaks.

    Raises: as `training.train`.
    """
    if not training.is_main():
        training.train(config, on_preview=lambda _step, _picture: None)
        return
    output = Path(config.output)
    with console.progress(output.stem) as bar:

        def on_step(progress: training.Progress) -> None:
            bar.step(progress.step, progress.steps, f"loss {progress.loss:.4f}")

        def on_preview(step: int, picture: Any) -> None:
            plots.save_picture(picture, output.with_name(f"{output.stem}-{step:05}.png"), json.dumps(as_dict(config)))

        adapter = training.train(config, on_step=on_step, on_preview=on_preview, on_stage=bar.stage)
    console.say(f"{output}: {len(adapter.layers)} layers, rank {adapter.rank}, {console.size(output)}")
    if training.how_many() > 1:
        console.say(f"learnt by {training.how_many()} processes")
    console.say(f'draw with it: qrlora generate "{config.prompt}" {output}')
