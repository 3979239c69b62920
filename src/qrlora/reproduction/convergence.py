"""Figure 8: how fast methods learn, by the loss on noise that is the same for all."""

import json
import statistics
from collections.abc import Callable

import torch

from ..comparison.figure_data import Curves, ReproducedResult
from ..comparison.jobs import TrainJob, job_identity
from ..comparison.result_store import readable
from ..comparison.summary_tables import Row
from ..config import TrainConfig
from ..families import Base
from ..image_loading import load_image
from ..methods import METHODS
from ..output_files import atomic
from ..temporary_files import temporary_folder
from ..training import Progress, denoising_loss, train
from ..training_example import encode_training_example
from .request import ReproductionRequest

EVERY = 5
"""Updates from one measurement to the next."""
DRAWS = 32
"""Noisy copies of the picture in a measurement, at times drawn evenly from 0..1."""
SEEDS = 3
"""Runs of each method: other batches of noise, and for LoRA another A."""
METHODS_SHOWN = tuple(name for name in ("qr", "qr-direct", "lora", "pissa") if name in METHODS)


def figure8(request: ReproductionRequest) -> ReproducedResult:
    """The loss of each method against updates on the first pair's content picture: mean and range of several runs."""
    pair = request.world()[0]
    jobs = {m: [request.lesson(pair.content, "content", m, seed) for seed in range(SEEDS)] for m in METHODS_SHOWN}
    runs = {method: [_kept(request, job) for job in of_seeds] for method, of_seeds in jobs.items()}
    steps = list(runs[METHODS_SHOWN[0]][0])
    lines, bands = {}, {}
    rows: list[Row] = [{"updates": step} for step in steps]
    for method, curves in runs.items():
        losses = [[curve[step] for curve in curves] for step in steps]
        mean, low, high = ([of(x) for x in losses] for of in (statistics.fmean, min, max))
        lines[method], bands[method] = (steps, mean), (low, high)
        for row, *numbers in zip(rows, mean, low, high, strict=True):
            row |= dict(zip((method, f"{method}: low", f"{method}: high"), numbers, strict=True))
    rates = ", ".join(f"{method} {of_seeds[0].settings['learning_rate']:g}" for method, of_seeds in jobs.items())
    notes = (
        f"Loss on {DRAWS} fixed draws of noise, the same for all methods, seeds and updates; content picture of "
        f"{pair.name}; {SEEDS} seeds, their mean, lowest and highest. Learning rates, the base's own: {rates}.",
        "The paper shows curves without numbers.",
    )
    figure = Curves({"loss on fixed noise": lines}, "updates", "loss", bands)
    return ReproducedResult(f"Figure 8: convergence, {request.base}", rows, notes, figure)


def _kept(request: ReproductionRequest, job: TrainJob) -> dict[int, float]:
    """{updates: loss} of one run, of which the folder keeps the curve: the same command goes on after the last one."""
    name = job_identity("curve", job.place, "reproduction.convergence", {"run": job.identity})
    path = request.folder / "curves" / f"{name}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as file:
            file.write(json.dumps(list(_curve(request, job).items())).encode())
    with readable(path):
        return dict(json.loads(path.read_text(encoding="utf-8")))


def _curve(request: ReproductionRequest, job: TrainJob) -> dict[int, float]:
    """{updates: loss} of one run."""
    base = request.opened
    with temporary_folder() as folder:
        image = folder / "lesson.png"
        image.write_bytes(job.shown.picture)
        places = {"base": base.name, "image": image, "output": folder / "learnt.safetensors"}
        config = TrainConfig(**places, prompt=job.shown.prompt, **job.settings)
        measure = _fixed(base, config)
        curve = {0: measure()}

        def note(progress: Progress) -> None:
            if progress.step % EVERY == 0 or progress.step == progress.steps:
                curve[progress.step] = measure()
            if request.on_job is not None:
                request.on_job(progress.step, progress.steps, f"{config.method}, seed {config.seed}", "")

        train(config, base=base, on_step=note, progress=False)
    return curve


def _fixed(base: Base, config: TrainConfig) -> Callable[[], float]:
    """() -> the loss of the model as it is now, with whatever learns on it."""
    assert config.resolution is not None
    example = encode_training_example(base, load_image(config.image, config.resolution), config.prompt)
    noising, generator = base.noising, torch.Generator("cpu").manual_seed(12345)
    clean = example.latents.to(base.device).expand(DRAWS, -1, -1, -1)
    noise = torch.randn(clean.shape, generator=generator).to(base.device)
    time = noising.sample_time(DRAWS, generator).to(base.device)
    condition = example.condition.to(base.device).rows([0] * DRAWS)

    @torch.no_grad()
    def measure() -> float:
        with base.on_device():
            return float(denoising_loss(base.family.predict, base.model, noising, clean, noise, time, condition))

    return measure
