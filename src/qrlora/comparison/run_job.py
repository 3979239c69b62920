"""Run one job in any process or on any machine, from bytes to bytes: train an adapter, or fuse, sample and score."""

import errno
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .. import evaluation
from ..adapter import Adapter
from ..analysis import interference, similarity, trainable_parameters
from ..baselines import FusionInputs, FusionMethod, FusionResult, TrainingImage, fusion
from ..baselines.fusion_method import sample_with_adapter
from ..config import TrainConfig
from ..families import Base, open_base
from ..files import load
from ..sampling import generate
from ..temporary_files import temporary_folder
from ..training import train
from ..world.captions import caption
from ..world.image_tensors import tensor_from_pil
from .decomposition import EVERYDAY_CONTENTS, EVERYDAY_STYLES, draw_and_score, without_trigger
from .image_pairs import CaptionedImage
from .jobs import BaseSpec, Job, SampleJob, TrainJob, base_digest
from .known_word_scale import KnownWordScale, encoders_as_judges, known_word_pairs, known_word_scales
from .weak_adapter import comes_out

JobOutput = dict[str, bytes]
"""A job's output: {file ending: bytes}."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ADAPTER, RESULT, IMAGES = ".safetensors", ".json", ".png"


@dataclass(frozen=True)
class JobFailure:
    """The output of a job that failed."""

    reason: str
    """The error, in one line."""
    disk_full: bool = False
    """Whether the disk was full, which the next job would meet as well."""


def base_alone(task: FusionInputs) -> FusionResult:
    """The lower bound: the base without an adapter."""
    return FusionResult(lambda prompts, seeds: generate(task.base, list(prompts), seed=list(seeds)), None)


def oracle(task: FusionInputs) -> FusionResult:
    """The upper bound: one adapter trained on the true fused image, in place of the content's."""
    return sample_with_adapter(task.base, task.content)


BOUNDS = {
    "none": FusionMethod("none", "the base with the prompt alone", {}, base_alone),
    "oracle": FusionMethod("oracle", "one adapter of the true fused picture", {"method": "qr"}, oracle),
}
"""The lower and the upper bound of the scores, which are in every table."""


def find_fusion_or_bound(name: str) -> FusionMethod:
    """The fusion method or bound of a name. Raises: ValueError: neither has this name."""
    return BOUNDS.get(name) or fusion(name)


def run_job(job: Job, inputs: Mapping[str, bytes]) -> JobOutput | JobFailure:
    """Run a job; an error in it is returned as its output, so that other jobs go on.

    It runs on one thread: more would change the last digits from machine to machine, and do not speed up a tiny base.

    Args: inputs: {identity: adapter file} of the adapters that a sample job needs.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run_train_job(job) if isinstance(job, TrainJob) else _run_sample_job(job, inputs)
    except Exception as error:
        disk_full = isinstance(error, OSError) and error.errno in DISK_FULL
        return JobFailure(f"{type(error).__name__}: {' '.join(str(error).split())}", disk_full)
    finally:
        torch.set_num_threads(threads)


@cache
def open_base_once(name: str, device: str, dtype: str) -> Base:
    """A base, opened once per process."""
    return open_base(name, device, dtype)


@cache
def base_digest_once(name: str, device: str, dtype: str) -> str:
    """`base_digest` of a base, computed once per process."""
    return base_digest(open_base_once(name, device, dtype))


def _checked_base_of_job(base_spec: BaseSpec) -> Base:
    """Open a job's base. Raises: ValueError: this worker has another base of that name."""
    if base_digest_once(base_spec.base, base_spec.device, base_spec.dtype) != base_spec.digest:
        raise ValueError(f"this worker's {base_spec.base} is another base than the comparison's: give all the same one")
    return open_base_once(base_spec.base, base_spec.device, base_spec.dtype)


def _run_train_job(job: TrainJob) -> JobOutput:
    """Run a training job: the adapter's file."""
    base = _checked_base_of_job(job.base_spec)
    with temporary_folder() as folder:
        output = folder / "adapter.safetensors"
        source = _write_training_image(job.training_image, folder, "lesson")  # stands in the adapter's header
        config = TrainConfig(base=base.name, image=source.image, prompt=source.prompt, output=output, **job.settings)
        train(config, base=base, progress=False)
        return {ADAPTER: output.read_bytes()}


def _run_sample_job(job: SampleJob, inputs: Mapping[str, bytes]) -> JobOutput:
    """Run a sampling job: fuse two adapters, sample images and score them."""
    base = _checked_base_of_job(job.base_spec)
    with temporary_folder() as folder:
        content, style = (_load_adapter_of_job(x, inputs, folder) for x in (job.content, job.style))
        task = FusionInputs(
            base=base,
            content=content,  # pyright: ignore[reportArgumentType]  # None where the method uses no adapter
            style=style,
            content_image=_write_training_image(job.pair.content, folder, "content"),
            style_image=_write_training_image(job.pair.style, folder, "style"),
            seed=job.training_seed,
        )
        fused = find_fusion_or_bound(job.method).fuse(task)
        images = fused.draw([job.pair.prompt] * len(job.seeds), job.seeds)
        unrelated = fused.draw(job.unrelated, job.seeds)
        scales = _known_word_scales_of_job(job)
        parts = _decomposed_scores(job, {"content": content, "style": style}, fused, scales)
    rows = _image_scores(job, images)
    preserved = _ssim_of_images(unrelated, _base_images(job.base_spec, job.unrelated, job.seeds))
    for row, score in zip(rows, preserved, strict=True):
        row["preserved"] = score
    whole, layers = _adapter_interference(content, style)
    adapters = [adapter for adapter in (content, style) if adapter]
    merged = [fused.adapter] if fused.adapter else []
    errors = [adapter.header.config.get("truncation_error", 0.0) for adapter in (*adapters, *merged)]
    result: dict[str, Any] = {
        "rows": rows,
        "parts": parts,
        "known_word_spread": {role: scale.spread for role, scale in scales.items()},
        "interference": whole,
        "layers": layers,
        "parameters": sum(map(trainable_parameters, adapters)),
        "truncation_error": max(errors, default=0.0),
        "device": str(base.device),
        "encoders": [str(encoder) for encoder in _checked_encoders_of_job(job)],
    }
    return {IMAGES: _images_side_by_side(images), RESULT: json.dumps(result).encode()}


def _adapter_interference(
    content: Adapter | None, style: Adapter | None
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """A sampling job's interference: `analysis.interference` of its two adapters, `analysis.similarity` for each layer
    that both have."""
    if content is None or style is None:
        return {}, []
    both = content.layers.keys() & style.layers.keys()
    return interference(content, style)._asdict(), [x._asdict() for x in similarity(content, style)] if both else []


def _decomposed_scores(
    job: SampleJob, adapters: Mapping[str, Adapter | None], fused: FusionResult, scales: Mapping[str, KnownWordScale]
) -> list[dict[str, Any]]:
    """A row of scores for each of the job's decomposed prompts; "part" is what its image shows."""
    rows: list[dict[str, Any]] = []
    pictures = {"content": job.pair.content, "style": job.pair.style}
    for present in dict.fromkeys(x.adapters for x in job.decomposed):
        some = [x for x in job.decomposed if x.adapters == present]
        alone = adapters.get(present)
        draw = fused if alone is None else sample_with_adapter(_checked_base_of_job(job.base_spec), alone)
        leaks = (job.pair.style.content, job.pair.content.style)
        for x, (image, scores) in zip(some, draw_and_score(some, draw.draw, leaks), strict=True):
            out = {comes_out(role): s.scores([image], _open_image(pictures[role]))[0] for role, s in scales.items()}
            rows.append({"part": x.part, "seed": x.seed, **_encoder_scores(job, [image])[0], **scores, **out})
    return rows


def _known_word_scales_of_job(job: SampleJob) -> dict[str, KnownWordScale]:
    """Role -> the scale of how far it comes out in own images; {} where the truth is known or nothing is decomposed."""
    encoders = _checked_encoders_of_job(job)
    if job.pair.truth is not None or not job.decomposed or all(x.distance for x in encoders):
        return {}
    pairs = known_word_pairs(EVERYDAY_CONTENTS, EVERYDAY_STYLES)
    prompts, seeds = tuple(caption(*pair) for pair in pairs), (job.training_seed,) * len(pairs)
    images = _base_images(job.base_spec, prompts, seeds)
    return known_word_scales(encoders_as_judges(encoders), pairs, images)


def _image_scores(job: SampleJob, images: Sequence[Image.Image]) -> list[dict[str, float]]:
    """A row of scores for each image of a job: by the classifiers, if there is ground truth, and by the vision
    encoders."""
    pair = job.pair
    rows: list[dict[str, float]] = [{} for _ in images]
    if pair.truth is not None:
        truth = tensor_from_pil([_open_image(pair.truth)])[0]
        known = (pair.truth.content, pair.truth.style, pair.style.content, pair.content.style)
        rows = evaluation.ground_truth_scores(tensor_from_pil(images), truth, *known)
    by_encoder = _encoder_scores(job, images, pair.truth)
    return [{"seed": seed, **a, **b} for seed, a, b in zip(job.seeds, rows, by_encoder, strict=True)]


def _encoder_scores(
    job: SampleJob, images: Sequence[Image.Image], truth: CaptionedImage | None = None
) -> list[dict[str, float]]:
    """For each image of a job its likeness to the content and to the style image, and to the true image if there is
    one, by each vision encoder."""
    rows: list[dict[str, float]] = [{} for _ in images]
    references = {"C": job.pair.content, "S": job.pair.style} | ({"T": truth} if truth else {})
    for encoder in _checked_encoders_of_job(job):
        for letter, given in references.items():
            for row, likeness in zip(rows, encoder.likeness(images, _open_image(given)), strict=True):
                row[f"{encoder.name}-{letter}"] = likeness
    return rows


def _checked_encoders_of_job(job: SampleJob) -> list[evaluation.Encoder]:
    """Open a job's vision encoders. Raises: ValueError: this worker has another encoder of that name."""
    opened = [_encoder(name, job.base_spec.device) for name in job.encoders]
    for name, encoder, wanted in zip(job.encoders, opened, job.encoder_identities, strict=True):
        if encoder.identity != wanted:
            raise ValueError(f"this worker's {name} is another encoder than the comparison's: give all the same one")
    return opened


@cache
def _encoder(name: str, device: str) -> evaluation.Encoder:
    return evaluation.open_encoder(name, device)


@cache
def _base_images(base_spec: BaseSpec, prompts: tuple[str, ...], seeds: tuple[int, ...]) -> list[Image.Image]:
    """Images of the base without adapters; the same for every method and pair."""
    return generate(_checked_base_of_job(base_spec), prompts, seed=seeds)


def _ssim_of_images(first: Sequence[Image.Image], second: Sequence[Image.Image]) -> list[float]:
    """SSIM of each image with its counterpart."""
    return evaluation.ssim(tensor_from_pil(first), tensor_from_pil(second)).tolist()


def _load_adapter_of_job(job: TrainJob | None, inputs: Mapping[str, bytes], folder: Path) -> Adapter | None:
    """Load an adapter that a sampling job needs, from the bytes that came with it."""
    if job is None:
        return None
    path = folder / f"{job.identity}.safetensors"
    path.write_bytes(inputs[job.identity])
    return without_trigger(load(path))  # for the unrelated prompts


def _write_training_image(training_image: CaptionedImage, folder: Path, name: str) -> TrainingImage:
    """Write a training job's image to a file."""
    image = _open_image(training_image)
    path = folder / f"{name}.{(image.format or 'png').lower()}"
    path.write_bytes(training_image.file)
    return TrainingImage(path, training_image.prompt)


def _open_image(training_image: CaptionedImage) -> Image.Image:
    return Image.open(io.BytesIO(training_image.file))


def _images_side_by_side(images: Sequence[Image.Image]) -> bytes:
    """A job's images side by side, as a PNG."""
    width, height = images[0].size
    strip = Image.new("RGB", (width * len(images), height))
    for k, image in enumerate(images):
        strip.paste(image, (k * width, 0))
    buffer = io.BytesIO()
    strip.save(buffer, "PNG")
    return buffer.getvalue()
