"""Figure 8: convergence of each method's training, by the loss on fixed noise."""

import json
import statistics
from collections.abc import Callable

import torch

from ..comparison.figure_data import Curves, ReproducedResult
from ..comparison.jobs import TrainJob, job_identity
from ..comparison.result_store import explain_damaged_file
from ..comparison.summary_tables import TableRow
from ..config import TrainConfig
from ..families import Base
from ..image_loading import load_image
from ..image_size import height_and_width
from ..initialisation_methods import METHODS
from ..output_files import atomic
from ..temporary_files import temporary_folder
from ..training import Progress, denoising_loss, train
from ..training_example import encode_training_examples
from .request import ReproductionRequest

MEASURE_EVERY = 5
"""Optimizer updates between two measurements of the loss."""
NOISE_SAMPLES = 32
"""Noisy copies of the image in a measurement, at random timesteps."""
RUNS_PER_METHOD = 3
"""Training runs of each method, with different seeds of the noise and of LoRA's A."""
METHODS_SHOWN = tuple(name for name in ("qr", "qr-direct", "lora", "pissa") if name in METHODS)


def figure8(request: ReproductionRequest) -> ReproducedResult:
    """Figure 8, convergence: the loss of each method against updates on the first pair's content image: mean and range
    of several runs."""
    pair = request.benchmark_pairs()[0]
    jobs = {
        m: [request.train_job(pair.content, "content", m, seed) for seed in range(RUNS_PER_METHOD)]
        for m in METHODS_SHOWN
    }
    runs = {method: [_load_or_measure_curve(request, job) for job in of_seeds] for method, of_seeds in jobs.items()}
    steps = list(runs[METHODS_SHOWN[0]][0])
    lines, bands = {}, {}
    rows: list[TableRow] = [{"updates": step} for step in steps]
    for method, curves in runs.items():
        losses = [[curve[step] for curve in curves] for step in steps]
        mean, low, high = ([of(x) for x in losses] for of in (statistics.fmean, min, max))
        lines[method], bands[method] = (steps, mean), (low, high)
        for row, *numbers in zip(rows, mean, low, high, strict=True):
            row |= dict(zip((method, f"{method}: low", f"{method}: high"), numbers, strict=True))
    rates = ", ".join(f"{method} {of_seeds[0].settings['learning_rate']:g}" for method, of_seeds in jobs.items())
    notes = (
        f"Loss on {NOISE_SAMPLES} fixed draws of noise, the same for all methods, seeds and updates; content image of "
        f"{pair.name}; mean and range of {RUNS_PER_METHOD} seeds. Learning rates, the base's own: {rates}.",
        "The paper shows curves without numbers.",
    )
    figure = Curves({"loss on fixed noise": lines}, "updates", "loss", bands)
    return ReproducedResult(f"Figure 8: convergence, {request.base}", rows, notes, figure)


def _load_or_measure_curve(request: ReproductionRequest, job: TrainJob) -> dict[int, float]:
    """{updates: loss} of one run, from the folder, or measured and stored there, so that the command can be resumed."""
    name = job_identity("curve", job.base_spec, "reproduction.convergence", {"run": job.identity})
    path = request.folder / "curves" / f"{name}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as file:
            file.write(json.dumps(list(_measure_loss_curve(request, job).items())).encode())
    with explain_damaged_file(path):
        return dict(json.loads(path.read_text(encoding="utf-8")))


def _measure_loss_curve(request: ReproductionRequest, job: TrainJob) -> dict[int, float]:
    """Measure the convergence of one run: {updates: loss}."""
    base = request.base_model
    with temporary_folder() as folder:
        image = folder / "image.png"
        image.write_bytes(job.training_image.file)
        places = {"base": base.name, "image": image, "output": folder / "learnt.safetensors"}
        config = TrainConfig(**places, prompt=job.training_image.prompt, **job.settings)
        measure = _loss_on_fixed_noise(base, config)
        curve = {0: measure()}

        def note(progress: Progress) -> None:
            """Measure the loss at some of the updates."""
            if progress.step % MEASURE_EVERY == 0 or progress.step == progress.steps:
                curve[progress.step] = measure()
            if request.on_job is not None:
                request.on_job(progress.step, progress.steps, f"{config.method}, seed {config.seed}", "")

        train(config, base=base, on_step=note, progress=False)
    return curve


def _loss_on_fixed_noise(base: Base, config: TrainConfig) -> Callable[[], float]:
    """A function that measures a method's convergence: the loss of the model with its current adapter, always on the
    same noise."""
    assert config.resolution is not None
    example = encode_training_examples(
        base, [load_image(str(config.image), height_and_width(config.resolution))], [config.prompt]
    )
    noising, generator = base.noising, torch.Generator("cpu").manual_seed(12345)
    clean = example.latents.to(base.device).expand(NOISE_SAMPLES, -1, -1, -1)
    noise = torch.randn(clean.shape, generator=generator).to(base.device)
    time = noising.sample_time(NOISE_SAMPLES, generator).to(base.device)
    condition = example.condition.to(base.device).rows([0] * NOISE_SAMPLES)

    @torch.no_grad()
    def measure() -> float:
        with base.on_device():
            return float(denoising_loss(base.family.predict, base.model, noising, clean, noise, time, condition))

    return measure
