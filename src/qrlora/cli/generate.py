"""`qrlora generate`: images from a base model and any number of adapters."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..config import SampleConfig, as_dict
from . import console, options, usage_hints
from .arguments import files_with_strengths, sample_config
from .progress_bar import progress_bar

EXAMPLE = 'qrlora generate "a <c> in <s> style" dog.safetensors ink.safetensors=0.8'


def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw, with the adapters' trigger words in it.")],
    adapters: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE[=STRENGTH]", help="Strength 1 if none is given.", show_default=False),
    ] = None,
    output: Annotated[Path, options.File] = Path("picture.png"),
    count: Annotated[int, typer.Option(help="How many images; more than one also make a sheet.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the first image; each further one adds 1.")] = 0,
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
    """Draw images with a base model and any number of adapters."""
    usage_hints.check_prompt(prompt, adapters or [])
    paths, strengths = files_with_strengths(adapters or [], generate)
    config = sample_config(locals(), adapters=tuple(paths), strengths=tuple(strengths))
    draw_images(config, skip_text_encoders, any_prompt)


def draw_images(config: SampleConfig, skip_text_encoders: bool = False, any_prompt: bool = False) -> None:
    """Draw `count` images: one file, or a sheet and each image beside it.

    Args:   skip_text_encoders: layers of text encoders in the files are left out.
            any_prompt: a prompt without a trigger word is warned of, not refused.
    Raises: ValueError, OSError: a bad file, base or setting; a trigger word missing in the prompt; see
            `output_images.write_image_output`.
    """
    from .. import optional_dependencies

    optional_dependencies.require("diffusers", reason="qrlora generate")
    from .. import plots, sampling, sampling_arguments
    from . import open_for_sampling, output_images

    sampling_arguments.check_count_fits_memory(config.count)
    seeds = range(config.seed, config.seed + config.count)
    plots.picture_format(config.output)
    if config.count > 1:
        plots.figure_format(config.output)
    output_images.check_image_output(config, seeds)
    with progress_bar("drawing") as bar:
        opened = open_for_sampling.open_base_and_adapters(config, skip_text_encoders, any_prompt, bar.stage)
        config, base, adapters = opened
        bar.stage("the first image")
        weighted = list(zip(adapters, config.strengths, strict=True))
        common = open_for_sampling.sampling_settings(config, any_prompt)
        images = sampling.generate(base, config.prompt, weighted, **common, count=config.count, on_image=bar.step)
    made_with = json.dumps(as_dict(config))

    def write(output: Path) -> None:
        """Write the images of `qrlora generate`."""
        if len(images) == 1:
            plots.save_picture(images[0], output, made_with, config.overwrite)
            return
        for image, path in zip(images, output_images.single_images(output, seeds), strict=True):
            plots.save_picture(image, path, made_with, config.overwrite)
        panels = [plots.Panel("", [x], [f"seed {s}"]) for x, s in zip(images, seeds, strict=True)]
        footer = output_images.sampling_footer(config)
        plots.save(plots.sheet(panels, min(4, len(panels)), config.prompt, footer), output, config.overwrite)

    console.say(str(output_images.write_image_output(write, config, seeds)))
