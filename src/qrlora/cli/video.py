"""`qrlora video`: a short video from a base model of videos and any number of adapters."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..config import SampleConfig, as_dict
from . import console, options, usage_hints
from .arguments import files_with_strengths, sample_config
from .progress_bar import progress_bar

EXAMPLE = 'qrlora video "a <c> runs in <s> style" dog.safetensors ink.safetensors=0.8 --frames 33'


def video(
    prompt: Annotated[str, typer.Argument(help="What to draw, with the adapters' trigger words in it.")],
    adapters: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE[=STRENGTH]", help="Strength 1 if none is given.", show_default=False),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="A .webp, .gif or .png.")] = Path("video.webp"),
    frames: Annotated[int, typer.Option(help="How many: 1 + a multiple of 4 for Wan.")] = 33,
    fps: Annotated[int, typer.Option(help="Frames in a second.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    base: options.AdaptersBase = "",
    revision: options.Revision = "",
    negative_prompt: options.Negative = "",
    steps: options.SampleSteps = None,
    guidance: options.Guidance = None,
    size: options.Size = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quantize: options.Quantize = "",
    offload: options.Offload = False,
    skip_text_encoders: options.SkipTextEncoders = False,
    any_prompt: options.AnyPrompt = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Draw a short video with a base model of videos; its adapters may have been trained on images."""
    usage_hints.check_prompt(prompt, adapters or [])
    paths, strengths = files_with_strengths(adapters or [], video)
    config = sample_config(locals(), adapters=tuple(paths), strengths=tuple(strengths))
    draw_video(config, frames, fps, skip_text_encoders, any_prompt)


def draw_video(
    config: SampleConfig, frames: int, fps: int, skip_text_encoders: bool = False, any_prompt: bool = False
) -> None:
    """Draw a video into one file, for `qrlora video`.

    Args:   frames, fps: how many, and how many in a second.  others: as `generate.draw_images`.
    Raises: as `generate.draw_images`, and ValueError: fps below 1; see `video_sampling.generate_video`.
    """
    from .. import optional_dependencies

    optional_dependencies.require("diffusers", reason="qrlora video")
    from .. import plots, video_sampling
    from . import open_for_sampling, output_images

    if fps < 1:
        raise ValueError(f"fps must be 1 or more, got {fps}")
    plots.animation_format(config.output)
    output_images.check_image_output(config)
    with progress_bar("drawing") as bar:
        opened = open_for_sampling.open_base_and_adapters(config, skip_text_encoders, any_prompt, bar.stage)
        config, base, adapters = opened
        bar.stage("all frames")
        weighted = list(zip(adapters, config.strengths, strict=True))
        common = open_for_sampling.sampling_settings(config, any_prompt)
        drawn = video_sampling.generate_video(base, config.prompt, weighted, frames=frames, **common)
    made_with = json.dumps({**as_dict(config), "frames": frames, "fps": fps})

    def write(output: Path) -> None:
        plots.save_animation(drawn, output, fps, made_with, config.overwrite)

    console.say(str(output_images.write_image_output(write, config)))
