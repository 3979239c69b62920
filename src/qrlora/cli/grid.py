"""`qrlora grid`: an image for each pair of content and style strengths."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..config import SampleConfig
from . import console, options
from .arguments import parse_strengths, sample_config
from .progress_bar import progress_bar

EXAMPLE = "qrlora grid dog.safetensors ink.safetensors --style-strengths 0,0.5,1,1.5"


def grid(
    content: Annotated[str, typer.Argument(help="The content adapter's file.")],
    style: Annotated[str, typer.Argument(help="The style adapter's file.")],
    prompt: Annotated[str, typer.Option(help="What to draw.")] = "a <c> in <s> style",
    content_strengths: Annotated[str, typer.Option(help="From top to bottom.")] = "0,0.5,1",
    style_strengths: Annotated[str, typer.Option(help="From left to right.")] = "0,0.25,0.5,0.75,1",
    output: Annotated[Path, options.File] = Path("grid.png"),
    seed: Annotated[int, typer.Option(help="One seed for all images.")] = 0,
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
    """Draw an image for each pair of content and style strengths (the paper's figure 7)."""
    config = sample_config(locals(), adapters=(content, style))
    strengths = parse_strengths(content_strengths), parse_strengths(style_strengths)
    draw_grid(config, *strengths, skip_text_encoders, any_prompt)


def draw_grid(
    config: SampleConfig,
    content_strengths: Sequence[float],
    style_strengths: Sequence[float],
    skip_text_encoders: bool = False,
    any_prompt: bool = False,
) -> None:
    """Draw the image of each pair of strengths into one captioned plot, for `qrlora grid`.

    Args:   config: its adapters are the content's and the style's file.  others: as `generate.draw_images`.
    Raises: as `generate.draw_images`.
    """
    from .. import optional_dependencies

    optional_dependencies.require("diffusers", reason="qrlora grid")
    from .. import plots, sampling
    from ..merging.roles import swapped_roles
    from . import open_for_sampling, output_images

    plots.figure_format(config.output)
    output_images.check_image_output(config)
    with progress_bar("drawing") as bar:
        opened = open_for_sampling.open_base_and_adapters(config, skip_text_encoders, any_prompt, bar.stage)
        config, base, (content, style) = opened
        if doubt := swapped_roles(content.header, style.header):
            console.warn(doubt)
        bar.stage("the first image")
        strengths = (content_strengths, style_strengths)
        common = open_for_sampling.sampling_settings(config, any_prompt)
        images = sampling.grid(base, config.prompt, content, style, *strengths, **common, on_image=bar.step)
    figure = plots.strength_grid(images, *strengths, config.prompt, output_images.sampling_footer(config))
    written = output_images.write_image_output(lambda output: plots.save(figure, output, config.overwrite), config)
    console.say(str(written))
