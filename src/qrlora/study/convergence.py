"""Figure 8: how fast methods learn, by the loss on noise that is the same for all."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ..config import TrainConfig
from ..data import load_picture, prepare
from ..families import Base
from ..methods import METHODS
from ..training import Progress, denoising_loss, train
from .figures import Curves, Reproduced
from .findings import Row
from .lessons import Asked

EVERY = 5
"""Updates from one measurement to the next."""
DRAWS = 32
"""Noisy copies of the picture in a measurement, at times drawn evenly from 0..1."""
METHODS_SHOWN = tuple(name for name in ("qr", "qr-direct", "lora", "pissa") if name in METHODS)


def figure8(asked: Asked) -> Reproduced:
    """The loss of each method against updates, on the first pair's content picture."""
    base, pair = asked.opened, asked.world()[0]
    curves: dict[str, dict[int, float]] = {}
    for method in METHODS_SHOWN:
        job = asked.lesson(pair.content, "content", method)
        with TemporaryDirectory() as folder:
            image = Path(folder) / "lesson.png"
            image.write_bytes(pair.content.picture)
            places = {"base": base.name, "image": image, "output": Path(folder) / "learnt.safetensors"}
            config = TrainConfig(**places, prompt=pair.content.prompt, **job.settings)
            curves[method] = _curve(asked, base, config)
    steps = list(curves[METHODS_SHOWN[0]])
    rows: list[Row] = [{"updates": step, **{method: curves[method][step] for method in curves}} for step in steps]
    rates = {m: asked.lesson(pair.content, "content", m).settings["learning_rate"] for m in curves}
    notes = (
        f"Loss on {DRAWS} fixed draws of noise, the same for all methods and updates; content picture of {pair.name}. "
        "Learning rates, the base's own: " + ", ".join(f"{m} {rate:g}" for m, rate in rates.items()) + ".",
        "The paper shows curves without numbers.",
    )
    lines = {method: (steps, [curve[x] for x in steps]) for method, curve in curves.items()}
    figure = Curves({"loss on fixed noise": lines}, "updates", "loss")
    return Reproduced("Figure 8: convergence", rows, notes, figure)


def _curve(asked: Asked, base: Base, config: TrainConfig) -> dict[int, float]:
    """{updates: loss} of one run."""
    measure = _fixed(base, config)
    curve = {0: measure()}

    def note(progress: Progress) -> None:
        if progress.step % EVERY == 0 or progress.step == progress.steps:
            curve[progress.step] = measure()
        if asked.on_job is not None:
            asked.on_job(progress.step, progress.steps, config.method, "")

    train(config, base=base, on_step=note)
    return curve


def _fixed(base: Base, config: TrainConfig) -> Callable[[], float]:
    """() -> the loss of the model as it is now, with whatever learns on it."""
    assert config.resolution is not None
    example = prepare(base, load_picture(config.image, config.resolution), config.prompt)
    noising, generator = base.noising, torch.Generator("cpu").manual_seed(12345)
    clean = example.latents.to(base.device).expand(DRAWS, -1, -1, -1)
    noise = torch.randn(clean.shape, generator=generator).to(base.device)
    time = noising.sample_time(DRAWS, generator).to(base.device)
    condition = example.condition.to(base.device).rows([0] * DRAWS)

    @torch.no_grad()
    def measure() -> float:
        return float(denoising_loss(base.family.predict, base.model, noising, clean, noise, time, condition))

    return measure
