"""What a worker does with a job: bytes in, bytes out, so that it may be this process, another or another machine."""

import errno
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .. import evaluation
from ..adapter import Adapter
from ..analysis import interference, similarity, trainable_parameters
from ..baselines import FusionInputs, FusionMethod, FusionResult, TrainingImage, fusion
from ..baselines.fusion_method import static
from ..config import TrainConfig
from ..families import Base, open_base
from ..files import load
from ..sampling import generate
from ..temporary_files import temporary_folder
from ..training import train
from ..world.image_tensors import tensor_from_pil
from .image_pairs import CaptionedImage
from .jobs import BaseSpec, Job, SampleJob, TrainJob, base_digest

JobOutput = dict[str, bytes]
"""What a job makes: {file ending: content}."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ADAPTER, RESULT, PICTURES = ".safetensors", ".json", ".png"


@dataclass(frozen=True)
class JobFailure:
    """A job that came to nothing, and why, in one line."""

    reason: str
    full: bool = False
    """A full disk, which the next job would meet as well."""


def none(task: FusionInputs) -> FusionResult:
    """The lower end of the scale: the base with the prompt alone."""
    return FusionResult(lambda prompts, seeds: generate(task.base, list(prompts), seed=list(seeds)), None)


def oracle(task: FusionInputs) -> FusionResult:
    """The upper end: one adapter that learnt the true fused picture, in place of the content's."""
    return static(task.base, task.content)


ENDS = {
    "none": FusionMethod("none", "the base with the prompt alone", {}, none),
    "oracle": FusionMethod("oracle", "one adapter of the true fused picture", {"method": "qr"}, oracle),
}
"""The ends of the scale; they belong in every table."""


def fusion_of(name: str) -> FusionMethod:
    """A way to fuse by its name, or an end of the scale. Raises: ValueError: neither."""
    return ENDS.get(name) or fusion(name)


def run_job(job: Job, inputs: Mapping[str, bytes]) -> JobOutput | JobFailure:
    """Do a job; whatever goes wrong in it is its result, for the others to go on.

    On one thread: more would change the last digits from machine to machine, and a tiny base gains nothing by them.

    Args: inputs: {identity: adapter file} of the adapters that a Draw needs.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _learn(job) if isinstance(job, TrainJob) else _draw(job, inputs)
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in FULL
        return JobFailure(f"{type(error).__name__}: {' '.join(str(error).split())}", full)
    finally:
        torch.set_num_threads(threads)


@cache
def opened(name: str, device: str, dtype: str) -> Base:
    """A base, opened once in a process."""
    return open_base(name, device, dtype)


@cache
def _found(name: str, device: str, dtype: str) -> str:
    return base_digest(opened(name, device, dtype))


def _base(place: BaseSpec) -> Base:
    """Raises: ValueError: this worker has another base of that name."""
    if _found(place.base, place.device, place.dtype) != place.digest:
        raise ValueError(f"this worker's {place.base} is another base than the study's: give all the same one")
    return opened(place.base, place.device, place.dtype)


def _learn(job: TrainJob) -> JobOutput:
    base = _base(job.place)
    with temporary_folder() as folder:
        output = folder / "learnt.safetensors"
        lesson = _lesson(job.shown, folder, "lesson")
        config = TrainConfig(base=base.name, image=lesson.image, prompt=lesson.prompt, output=output, **job.settings)
        train(config, base=base, progress=False)
        return {ADAPTER: output.read_bytes()}


def _draw(job: SampleJob, inputs: Mapping[str, bytes]) -> JobOutput:
    base = _base(job.place)
    with temporary_folder() as folder:
        content, style = (_adapter(x, inputs, folder) for x in (job.content, job.style))
        task = FusionInputs(
            base=base,
            content=content,  # pyright: ignore[reportArgumentType]  # none of it where the method uses none
            style=style,
            content_lesson=_lesson(job.pair.content, folder, "content"),
            style_lesson=_lesson(job.pair.style, folder, "style"),
            seed=job.learn_seed,
        )
        fused = fusion_of(job.method).fuse(task)
        pictures = fused.draw([job.pair.prompt] * len(job.seeds), job.seeds)
        kept = _changes(fused.draw(job.unrelated, job.seeds), _untouched(job.place, job.unrelated, job.seeds))
    rows = _rows(job, pictures)
    for row, likeness in zip(rows, kept, strict=True):
        row["preserved"] = likeness
    met, layers = _met(content, style)
    learnt = sum(trainable_parameters(adapter) for adapter in (content, style) if adapter)
    told: dict[str, Any] = {"rows": rows, "interference": met, "layers": layers, "parameters": learnt}
    cut = [adapter.header.config.get("truncation_error", 0.0) for adapter in (content, style, fused.adapter) if adapter]
    told["truncation_error"] = max(cut, default=0.0)
    told["device"] = str(base.device)
    told["encoders"] = [str(encoder) for encoder in _encoders(job)]
    return {PICTURES: _strip(pictures), RESULT: json.dumps(told).encode()}


def _met(content: Adapter | None, style: Adapter | None) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """What the factors of two adapters say of each other: as wholes, and layer by layer where both are."""
    if content is None or style is None:
        return {}, []
    both = content.layers.keys() & style.layers.keys()
    return interference(content, style)._asdict(), [x._asdict() for x in similarity(content, style)] if both else []


def _rows(job: SampleJob, pictures: Sequence[Image.Image]) -> list[dict[str, float]]:
    """A row of scores for each picture."""
    pair = job.pair
    rows: list[dict[str, float]] = [{} for _ in pictures]
    if pair.truth is not None:
        truth = tensor_from_pil([_picture(pair.truth)])[0]
        known = (pair.truth.content, pair.truth.style, pair.style.content, pair.content.style)
        rows = evaluation.known_answer(tensor_from_pil(pictures), truth, *known)
    for encoder in _encoders(job):
        for letter, shown in (("C", pair.content), ("S", pair.style)):
            for row, likeness in zip(rows, encoder.likeness(pictures, _picture(shown)), strict=True):
                row[f"{encoder.name}-{letter}"] = likeness
    return [{"seed": seed, **row} for seed, row in zip(job.seeds, rows, strict=True)]


def _encoders(job: SampleJob) -> list[evaluation.Encoder]:
    """Raises: ValueError: this worker has another encoder of that name."""
    found = [_encoder(name, job.place.device) for name in job.encoders]
    for name, encoder, wanted in zip(job.encoders, found, job.encoder_identities, strict=True):
        if encoder.identity != wanted:
            raise ValueError(f"this worker's {name} is another encoder than the study's: give all the same one")
    return found


@cache
def _encoder(name: str, device: str) -> evaluation.Encoder:
    return evaluation.open_encoder(name, device)


@cache
def _untouched(place: BaseSpec, prompts: tuple[str, ...], seeds: tuple[int, ...]) -> list[Image.Image]:
    """What the base alone draws; the same for every method and pair."""
    return generate(_base(place), prompts, seed=seeds)


def _changes(pictures: Sequence[Image.Image], before: Sequence[Image.Image]) -> list[float]:
    """SSIM of each picture with what it was before."""
    return evaluation.ssim(tensor_from_pil(pictures), tensor_from_pil(before)).tolist()


def _adapter(job: TrainJob | None, inputs: Mapping[str, bytes], folder: Path) -> Adapter | None:
    if job is None:
        return None
    path = folder / f"{job.identity}.safetensors"
    path.write_bytes(inputs[job.identity])
    adapter = load(path)
    # unrelated prompts lack the trigger on purpose, and drawing would refuse them
    return replace(adapter, header=replace(adapter.header, trigger=""))


def _lesson(shown: CaptionedImage, folder: Path, name: str) -> TrainingImage:
    image = _picture(shown)
    path = folder / f"{name}.{(image.format or 'png').lower()}"
    path.write_bytes(shown.picture)
    return TrainingImage(path, shown.prompt)


def _picture(shown: CaptionedImage) -> Image.Image:
    return Image.open(io.BytesIO(shown.picture))


def _strip(pictures: Sequence[Image.Image]) -> bytes:
    """The pictures side by side, as a PNG."""
    width, height = pictures[0].size
    strip = Image.new("RGB", (width * len(pictures), height))
    for k, picture in enumerate(pictures):
        strip.paste(picture, (k * width, 0))
    buffer = io.BytesIO()
    strip.save(buffer, "PNG")
    return buffer.getvalue()
