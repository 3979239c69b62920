"""train(config) -> Adapter: one training image in, one adapter file out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..adapter import Adapter, Header
from ..basis import fingerprint
from ..config import TrainConfig, config_from_arguments
from ..contrastive_directions import ordinary_prompts
from ..devices import choose_device
from ..families import Base, open_base
from ..families.trigger_tokens import describe_unreadable_trigger
from ..families.vae_memory import check_size_fits_memory
from ..image_loading import CroppedImage
from ..image_size import height_and_width
from ..initialisation_methods import METHODS
from ..training_example import TrainingExamples, encode_training_examples
from . import optimizers
from .adapter_output import (
    check_adapter_fits,
    check_outputs_writable,
    check_step_files,
    header_of_step,
    load_finished_adapter,
    run_digest,
    save_adapter,
    save_adapter_of_step,
    settings_in_header,
)
from .batch_memory import check_activations_fit_memory, check_latents_fit_memory
from .checkpoint import Checkpoint, remove_checkpoint
from .config_checks import check_config, check_config_fits_base, check_opening_settings, warn_of_late_outputs
from .distributed import Processes, init_distributed, is_rank_zero
from .progress_bar import is_visible, training_progress_bar
from .run_identity import numeric_environment, run_identity
from .stop_signals import catch_stop_signals
from .trainable_adapter import TrainableAdapter, prepare_adapter
from .training_images import (
    TrainingImage,
    check_training_images,
    find_training_images,
    load_training_images,
    log_cropping,
    log_masks,
    with_prompt_of,
)
from .training_loop import Progress, run_training_loop

log = logging.getLogger("qrlora")


def train(
    config: TrainConfig | None = None,
    *,
    base: Base | str | None = None,
    on_step: Callable[[Progress], Any] | None = None,
    on_preview: Callable[[int, Any], Any] | None = None,
    on_stage: Callable[[str, float], Any] | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> Adapter:
    """Train one adapter on one image or several and write it to `config.output`, unless this very run has done so.

    Equal settings give equal bytes on one machine, also when the run was killed and started again: it resumes from the
    checkpoint of its own settings. Ctrl-C finishes the current update, writes a checkpoint and raises
    KeyboardInterrupt. Launched in several processes, each computes its shard of the batch; rank 0 calls back.

    Args:    config: or its settings as keywords: train(image="dog.png", steps=800).
             base: an open base to use instead of opening `config.base`; it is left unchanged. Without one the base is
             opened, and its text encoders and VAE are released before the first update; the VAE stays, offloaded
             between its calls, if there are previews. A name is the setting of that name.
             on_step: called after every update.
             on_preview: (step, PIL image) every `config.preview_every` updates.
             on_stage: (stage, fraction done 0..1) during preparation.
             progress: whether to show a progress bar; None: in a terminal or notebook, unless `on_stage` is given.
    Returns: the adapter, on the CPU.
    Raises:  ValueError: a setting, image or prompt that cannot work; NaN or infinity in the loss.
             OSError: base or image cannot be read, or the output not written, which is checked before the base is
             opened; an adapter that cannot be written at the end is saved elsewhere, and the message says where.
             FileExistsError: the output is another run's, and `config.overwrite` is not set.
    """
    if isinstance(base, str):
        base, settings = None, {**settings, "base": base}
    config = config_from_arguments(TrainConfig, config, settings)
    if progress is None:
        progress = on_stage is None and is_visible()
    if not (progress and is_rank_zero()):
        return _train_without_bar(config, base, on_step, on_preview, on_stage or (lambda _what, _share: None))
    with training_progress_bar(Path(config.output).stem, on_step, on_stage) as (step, stage):
        return _train_without_bar(config, base, step, on_preview, stage)


def _train_without_bar(
    config: TrainConfig,
    base: Base | None,
    on_step: Callable[[Progress], Any] | None,
    on_preview: Callable[[int, Any], Any] | None,
    stage: Callable[[str, float], Any],
) -> Adapter:
    """`train` without the progress bar."""
    images, config = _check_before_opening(config, base, on_preview)
    stage("opening the base model", 0.0)
    opened_here = base is None
    device = config.device if base is None else str(base.device)
    processes = init_distributed(device)
    optimizers.check_optimizer(config.optimizer, choose_device(device))
    if base is None:
        base = open_base(config.base, config.device, config.dtype, config.quantize, config.offload, config.revision)
    config = _config_for_base(config, base, len(images), processes)

    stage("reading the image", 0.0)
    assert config.resolution is not None and config.steps is not None and config.lr_decay is not None
    cropped = load_training_images(images, height_and_width(config.resolution))
    captions = [image.caption for image in images]
    if processes.is_rank_zero:
        log_cropping(images, cropped)
        log_masks(images, cropped)
    stage("comparing with earlier runs", 0.0)  # reads all of the base's weights
    inputs = run_identity(config, base, cropped, captions)
    finished = load_finished_adapter(config, run_digest(inputs, config.steps))
    if finished is not None:
        if processes.is_rank_zero:
            remove_checkpoint(config.checkpoints, inputs, config.steps, config.lr_decay)
        return finished
    check_adapter_fits(config, base)
    check_step_files(config, inputs)
    stage("encoding the image and its caption", 0.0)
    examples = _encode_examples(config, base, cropped, captions, processes)
    header_settings = settings_in_header(config, images)
    draw_preview = _preview_sampler(config, base, on_preview) if config.preview_every else None
    if opened_here:
        base.release(keep=["vae"] if draw_preview else [])
    with base.on_device():
        adapter = _train_on_base(
            config, base, examples, header_settings, inputs, processes, on_step, draw_preview, stage
        )
    processes.barrier()
    return adapter


def _check_before_opening(
    config: TrainConfig, base: Base | None, on_preview: Callable[[int, Any], Any] | None
) -> tuple[list[TrainingImage], TrainConfig]:
    """The training images, and the config with their prompt, once all is checked that needs no base opened.

    Raises: ValueError, OSError: as `train`; settings that say how a base is opened, and of the open one are not true.
    """
    if base is not None:
        config = replace(config, base=base.name)
        check_opening_settings(config, base)
    images = find_training_images(config)
    config = with_prompt_of(images, config)
    check_config(config, on_preview)
    check_training_images(images, config)
    check_outputs_writable(config, images)
    return images, config


def _encode_examples(
    config: TrainConfig, base: Base, images: Sequence[CroppedImage], captions: Sequence[str], processes: Processes
) -> TrainingExamples:
    """The training images and captions, encoded, with the ordinary prompts of a method that compares with them. Raises
    ValueError: as `encode_training_examples`; a batch of them that no memory holds."""
    needs_ordinary = config.method in METHODS and METHODS[config.method].needs_example
    ordinary = ordinary_prompts(config) if needs_ordinary else []
    examples = encode_training_examples(base, images, captions, ordinary)
    check_latents_fit_memory(config, base, examples, processes)
    return examples


def _config_for_base(config: TrainConfig, base: Base, images: int, processes: Processes) -> TrainConfig:
    """The config without None, checked with the base. Warns of a base that is not meant to be trained, and of a trigger
    that its tokenizers cannot read. Raises: ValueError: as `check_config_fits_base`."""
    if config.dtype == "auto":  # the adapter's header says which it was
        config = replace(config, dtype=str(base.model.dtype).removeprefix("torch."))
    config = config.filled(base.defaults, images)
    check_config_fits_base(base, config, processes)
    assert config.resolution is not None
    check_size_fits_memory(base, "resolution", config.resolution)
    if processes.is_rank_zero:
        warn_of_late_outputs(config)
        if undistilled := base.family.distilled_from(base.pipe):
            hint = f"train on {undistilled}, whose layers are the same, and draw with this one"
            warnings.warn(f"{base.name} is distilled to few steps, which training tends to undo: {hint}", stacklevel=4)
        if unreadable := describe_unreadable_trigger(base, config.trigger):
            log.warning(unreadable)
    return config


def _train_on_base(
    config: TrainConfig,
    base: Base,
    examples: TrainingExamples,
    header_settings: dict[str, Any],
    inputs: Mapping[str, Any],
    processes: Processes,
    on_step: Callable[[Progress], Any] | None,
    draw_preview: Callable[[int], Any] | None,
    stage: Callable[[str, float], Any],
) -> Adapter:
    """Inject the adapter into the base's model, train it, extract it and write it; the model is left without it."""
    assert config.steps is not None and config.lr_decay is not None
    generator = torch.Generator("cpu").manual_seed(config.seed)
    with processes.rank_zero_first():
        inject_adapter = prepare_adapter(base, config, examples, generator, stage)
    header = _header_of_run(config, base, header_settings)
    trainable = inject_adapter()
    try:
        processes.assert_equal_across_ranks(trainable.start["basis"])
        here = numeric_environment(base, processes.count)
        checkpoint = Checkpoint(config.checkpoints, inputs, here, config.steps, config.lr_decay, trainable, generator)
        on_step, draw_preview = on_step or (lambda _: None), draw_preview or (lambda _: None)
        stage("beginning the first update", 0.0)
        check_activations_fit_memory(config, base, examples, processes)

        def extract(step: int) -> Adapter:
            """The adapter after an update of the training."""
            whole = _header_with_start(header, trainable)  # not before: a resumed run's start is its checkpoint's
            return trainable.extract(header_of_step(whole, config, inputs, step))

        def save_step(step: int) -> None:
            save_adapter_of_step(extract(step), config, step)

        with catch_stop_signals() as stop_requested:
            run_training_loop(
                config, base, examples, checkpoint, processes, stop_requested, on_step, draw_preview, save_step
            )
            adapter = extract(config.steps)
            if processes.is_rank_zero:
                save_adapter(adapter, config)
                checkpoint.remove()
        return adapter
    finally:
        trainable.detach()


def _header_with_start(header: Header, trainable: TrainableAdapter) -> Header:
    """The header of a training's adapter with the basis that it starts from, and what that lacks of the best."""
    lost = trainable.start["lost"]
    entries: dict[str, Any] = {} if lost is None else {"basis_energy_lost": lost}
    return replace(header, basis=trainable.start["basis"], config={**header.config, **entries})


def _preview_sampler(
    config: TrainConfig, base: Base, on_preview: Callable[[int, Any], Any] | None
) -> Callable[[int], None]:
    """(step) -> None: hands the caller an image with the adapter so far, always of one seed, so that previews of a
    training can be compared. The prompt is encoded now. If a GPU's memory runs out there is none but a warning:
    training continues."""
    assert on_preview is not None  # see check_config
    defaults, side = base.defaults, config.resolution
    assert side is not None
    condition = base.embed([config.preview_prompt or config.prompt], "", defaults.guidance)
    settings = (condition, side, defaults.sample_steps, defaults.guidance)

    def draw_preview(step: int) -> None:
        """Sample with the adapter as it is, and go on with training."""
        seed = torch.Generator("cpu").manual_seed(config.seed)
        try:
            image = base.decode_image(base.denoise(*settings, [seed]))[0]
        except torch.cuda.OutOfMemoryError:
            image = None  # the error, which holds the tensors that filled the memory, is gone before the next update
        if image is not None:
            on_preview(step, image)
            return
        warnings.warn("memory ran out while a preview was drawn: this one is left out", stacklevel=2)
        torch.cuda.empty_cache()

    return draw_preview


def _header_of_run(config: TrainConfig, base: Base, settings: dict[str, Any]) -> Header:
    """The header of the adapter that a training writes."""
    assert config.rank is not None and config.targets is not None
    return Header(
        family=base.family.name,
        component=base.family.component,
        base=base.name,
        fingerprint=fingerprint(base.weights(config.targets)),
        method=config.method,
        rank=config.rank,
        targets=config.targets,
        role=config.role,
        trigger=config.trigger,
        prompt=config.prompt,
        config=settings,
    )
