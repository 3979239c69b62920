"""train(config) -> Adapter: one picture in, one adapter file out."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..adapter import Adapter, Header
from ..basis import fingerprint
from ..config import TrainConfig, as_dict
from ..contrastive_directions import ordinary_prompts
from ..devices import choose_device
from ..families import Base, open_base
from ..injection.peft_methods import PREFIX, check
from ..methods import METHODS
from ..noising import noising_of
from ..training_example import MIN_SIDE, Example, load_picture, prepare
from ..trigger_words import says
from . import optimizers
from .adapter_output import RUN, finished, keep, name_of, try_places, try_size
from .checkpoint import Checkpoint, remove
from .distributed import Processes, init_distributed, is_rank_zero
from .progress_bar import is_seen, shown
from .run_identity import ELSEWHERE, circumstances, identity
from .stop_signals import catch_stop_signals
from .trainable_adapter import prepared
from .training_loop import Progress, run


def train(
    config: TrainConfig,
    *,
    base: Base | None = None,
    on_step: Callable[[Progress], Any] | None = None,
    on_preview: Callable[[int, Any], Any] | None = None,
    on_stage: Callable[[str, float], Any] | None = None,
    progress: bool | None = None,
) -> Adapter:
    """Learn one adapter from one picture and write it to `config.output`, unless this very run has done so before.

    Equal settings give equal bytes on one machine, also when the run was killed and started again: it finds the
    checkpoint of its own settings and goes on. Ctrl-C ends the update at hand, writes a checkpoint and raises
    KeyboardInterrupt. Launched in several processes, each takes its share of the batch; the first one writes and calls.

    Args:    base: an open base to use instead of opening `config.base`; it is left as it was. Without one the base is
             opened, and its text encoders and VAE are forgotten before the first update; the VAE stays, on the CPU
             between its turns, if there are previews.
             on_step: called after every update.
             on_preview: (step, PIL picture) every `config.preview_every` updates.
             on_stage: (what, share done 0..1) while things are prepared.
             progress: whether to show a bar; None: in a terminal or notebook, unless `on_stage` shows where it is.
    Returns: the adapter, on the CPU.
    Raises:  ValueError: a setting, picture or prompt that cannot work; NaN or infinity in the loss.
             OSError: base, picture or output cannot be read or written, the output before anything is opened; an
             adapter that cannot be written at the end is kept elsewhere, as the message says.
             FileExistsError: the output is another run's, and `config.overwrite` is not set.
    """
    if progress is None:
        progress = on_stage is None and is_seen()
    if not (progress and is_rank_zero()):
        return _train(config, base, on_step, on_preview, on_stage or (lambda _what, _share: None))
    with shown(Path(config.output).stem, on_step, on_stage) as (step, stage):
        return _train(config, base, step, on_preview, stage)


def _train(
    config: TrainConfig,
    base: Base | None,
    on_step: Callable[[Progress], Any] | None,
    on_preview: Callable[[int, Any], Any] | None,
    stage: Callable[[str, float], Any],
) -> Adapter:
    """As `train`."""
    _check(config, on_preview)
    try_places(config)
    stage("opening the base model", 0.0)
    owned = base is None
    device = config.device if base is None else str(base.device)
    processes = init_distributed(device)
    optimizers.check(config.optimizer, choose_device(device))
    if base is None:
        base = open_base(config.base, config.device, config.dtype, config.quantize, config.offload, config.revision)
    if config.dtype == "auto":  # the adapter tells which it was
        config = replace(config, dtype=str(base.model.dtype).removeprefix("torch."))
    config = config.filled(base.defaults)
    check_against(base, config, processes)

    stage("reading the picture", 0.0)
    assert config.resolution is not None and config.steps is not None and config.decay is not None
    picture = load_picture(config.image, config.resolution)
    whose = identity(config, base, picture)
    done = finished(config, name_of(whose, config.steps))
    if done is not None:
        if processes.main:
            remove(config.checkpoints, whose, config.steps, config.decay)
        return done
    try_size(config, base)
    asks = config.method in METHODS and METHODS[config.method].needs_example
    ordinary = ordinary_prompts(config) if asks else []
    example = prepare(base, picture, config.prompt, ordinary)
    preview = _preview(config, base) if config.preview_every else None
    if owned:
        base.release(keep=["vae"] if preview else [])
    with base.on_device():
        adapter = _learn(config, base, example, whose, processes, on_step, preview, on_preview, stage)
    processes.wait()
    return adapter


def _learn(
    config: TrainConfig,
    base: Base,
    example: Example,
    whose: Mapping[str, Any],
    processes: Processes,
    on_step: Callable[[Progress], Any] | None,
    preview: Callable[[], Any] | None,
    on_preview: Callable[[int, Any], Any] | None,
    stage: Callable[[str, float], Any],
) -> Adapter:
    """The adapter that grows on the base's model, lifted out of it and written; the model is left without it."""
    assert config.steps is not None and config.decay is not None

    def draw(step: int) -> None:
        assert preview is not None and on_preview is not None
        picture = preview()
        if picture is not None:
            on_preview(step, picture)

    generator = torch.Generator("cpu").manual_seed(config.seed)
    with processes.main_first():
        put_on = prepared(base, config, example, generator, stage)
    header = _header(config, base)
    learner = put_on()
    try:
        processes.assert_equal_across_ranks(learner.start["basis"])
        here = circumstances(base, processes.count)
        kept = Checkpoint(config.checkpoints, whose, here, config.steps, config.decay, learner, generator)
        with catch_stop_signals() as asked:
            run(config, base, example, kept, processes, asked, on_step or (lambda _: None), draw)
            lost = learner.start["lost"]
            told: dict[str, Any] = {} if lost is None else {"basis_energy_lost": lost}
            told[RUN] = name_of(whose, config.steps)
            about = replace(header, basis=learner.start["basis"], config={**header.config, **told})
            adapter = learner.extract(about)
            if processes.main:
                keep(adapter, config)
                kept.remove()
        return adapter
    finally:
        learner.detach()


def _preview(config: TrainConfig, base: Base) -> Callable[[], Any]:
    """() -> what the unfinished adapter draws: always from one seed, so that pictures of a run can be compared. Its
    prompt is encoded now. None, with a warning, where a GPU's memory runs out: the run goes on."""
    own, side = base.defaults, config.resolution
    assert side is not None
    told = base.embed([config.preview_prompt or config.prompt], "", own.guidance)

    def draw() -> Any:
        seed = torch.Generator("cpu").manual_seed(config.seed)
        try:
            return base.decode_image(base.denoise(told, side, own.sample_steps, own.guidance, [seed]))[0]
        except torch.cuda.OutOfMemoryError:
            pass  # the error holds what filled the memory: it must be gone before the next update
        warnings.warn("memory ran out while a preview was drawn: this one is left out", stacklevel=2)
        torch.cuda.empty_cache()
        return None

    return draw


def _header(config: TrainConfig, base: Base) -> Header:
    assert config.rank is not None and config.targets is not None
    return Header(
        family=base.family.name,
        part=base.family.part,
        base=base.name,
        fingerprint=fingerprint(base.weights(config.targets)),
        method=config.method,
        rank=config.rank,
        targets=config.targets,
        role=config.role,
        trigger=config.trigger,
        prompt=config.prompt,
        config=_settings(config),
    )


def _settings(config: TrainConfig) -> dict[str, Any]:
    """What a run learns from: its settings without places; where a person keeps pictures is nobody else's business."""
    values = {name: value for name, value in as_dict(config).items() if name not in ELSEWHERE}
    return {**values, "image": Path(config.image).name}


def _check(config: TrainConfig, on_preview: Any) -> None:
    """Refuse what can be refused before a base is opened."""
    config.checked()
    if config.method.startswith(PREFIX):
        check(config.method)
    elif config.method not in METHODS:
        near = difflib.get_close_matches(config.method, METHODS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(METHODS)}, {PREFIX}KIND"
        raise ValueError(f"no method {config.method!r}; {hint}")
    if config.preview_every and not says(config.preview_prompt or config.prompt, config.trigger):
        lacks = f"preview_prompt={config.preview_prompt!r} lacks the trigger word {config.trigger!r}"
        warnings.warn(f"{lacks}: what is learnt may not show in previews", stacklevel=3)
    if config.preview_every and on_preview is None:
        raise ValueError(f"preview_every={config.preview_every} needs on_preview, which takes the pictures")
    if Path(config.output).suffix != ".safetensors":
        raise ValueError(f"output must be a file name that ends in .safetensors, got {config.output}")
    load_picture(config.image, MIN_SIDE)


def check_against(base: Base, config: TrainConfig, processes: Processes) -> None:
    """Refuse what a base cannot do before anything long begins.

    Raises: ValueError: a noising it does not have; a resolution that does not fit; a rank above the smaller side of a
            layer, with the layer and its shape; a batch that the processes cannot share.
    """
    assert config.rank is not None and config.targets is not None
    assert config.times is not None and config.resolution is not None
    noising_of(base.pipe.scheduler.config, config.min_snr_gamma, config.times)
    base.check_side("resolution", config.resolution)
    if (config.batch_size or 0) % processes.count:
        way_out = f"use a multiple of {processes.count}"
        raise ValueError(f"batch_size={config.batch_size} cannot be shared by {processes.count} processes: {way_out}")
    layers = base.target_layers(config.targets)
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in layers.items()}
    name = min(shapes, key=lambda layer: min(shapes[layer]))
    if config.rank > min(shapes[name]):
        o, i = shapes[name]
        raise ValueError(f"rank {config.rank} is above the smaller side of {name} ({o} x {i}): use rank {min(o, i)}")
