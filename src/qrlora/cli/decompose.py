"""`qrlora decompose`: which of two adapters is weak, from the files alone, without a known answer."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config import SampleConfig
from . import console, options, tables
from .arguments import sample_config
from .progress_bar import progress_bar

if TYPE_CHECKING:
    from ..comparison.known_word_scale import Judge
    from ..comparison.two_adapters import DrawnParts
    from .decompose_inputs import DecomposeInputs

EXAMPLE = "qrlora decompose dog.safetensors ink.safetensors --content-image dog.png --style-image ink.png"
TRAINED_ON = "the one in the file's header, beside the file"


def decompose(
    content: Annotated[str, typer.Argument(help="The content adapter's file.")],
    style: Annotated[str, typer.Argument(help="The style adapter's file.")],
    content_image: Annotated[
        Path | None, typer.Option(help="What the content was trained on.", show_default=TRAINED_ON)
    ] = None,
    style_image: Annotated[
        Path | None, typer.Option(help="What the style was trained on.", show_default=TRAINED_ON)
    ] = None,
    things: Annotated[
        str, typer.Option(help="That the base knows, with commas between.", show_default="six of the base's")
    ] = "",
    styles: Annotated[
        str, typer.Option(help="That the base knows, with commas between.", show_default="six of the base's")
    ] = "",
    content_word: Annotated[
        str, typer.Option(help="What calls the content in prompts.", show_default="the file's trigger word")
    ] = "",
    style_word: Annotated[
        str, typer.Option(help="What calls the style in prompts.", show_default="the file's trigger word")
    ] = "",
    encoders: Annotated[
        str,
        typer.Option(
            help="What judges the content, and what the style: dino-vits16,csd-vit-l ...",
            show_default="a built-in base's classifiers, else dino-vits16,clip-vit-base-patch32",
        ),
    ] = "",
    output: Annotated[Path, options.File] = Path("decomposed.png"),
    seed: Annotated[int, typer.Option(help="One seed for all images; the sum has further ones.")] = 0,
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
    overwrite: options.Overwrite = False,
) -> None:
    """Draw a style on things and a content in styles that the base knows, and say which of the two adapters is weak.

    Each adapter alone, both present but one asked for, and the sum, beside the same words without an adapter.
    No known answer is needed, only the two pictures that the adapters were trained on.
    """
    config = sample_config(locals(), adapters=(content, style))
    given: dict[str, Any] = {"images": {"content": content_image, "style": style_image}}
    given["words"] = {"content": content_word, "style": style_word}
    given["known"] = {"content": options.split_names(things), "style": options.split_names(styles)}
    draw_decomposed(config, given, options.split_names(encoders), skip_text_encoders)


def draw_decomposed(
    config: SampleConfig, given: dict[str, Any], encoders: tuple[str, ...], skip_text_encoders: bool
) -> None:
    """Draw the sheet of `qrlora decompose`, print its table and which adapter is weak.

    Args:   given: see `decompose_inputs.read_inputs`.  encoders: names; none: those of the base's kind.
    Raises: as `generate.draw_images`, and see `decompose_inputs`.
    """
    from .. import optional_dependencies

    optional_dependencies.require("diffusers", reason="qrlora decompose")
    from .. import plots
    from ..comparison import two_adapters
    from . import decompose_inputs, decompose_sheet, output_images

    plots.figure_format(config.output)
    output_images.check_image_output(config)
    with progress_bar("drawing") as bar:
        inputs = decompose_inputs.read_inputs(config, given, skip_text_encoders, bar.stage)
        judges, names = _judges_or_warning(inputs, encoders)
        bar.stage("the first image")
        prompts = two_adapters.prompts_to_draw(inputs.pair, inputs.known, inputs.config.seed)
        images = two_adapters.draw_parts(inputs.base, inputs.pair, prompts, inputs.sampling, bar.step)
    drawn = two_adapters.DrawnParts(images)
    if judges:
        drawn = two_adapters.score_parts(images, inputs.known_pairs, inputs.pictures, judges)
    sheet = decompose_sheet.sheet(drawn, inputs)
    written = output_images.write_image_output(lambda path: plots.save(sheet, path, config.overwrite), config)
    if judges:
        print_scores(drawn, names)
    console.say(str(written))


def _judges_or_warning(inputs: "DecomposeInputs", encoders: tuple[str, ...]) -> "tuple[dict[str, Judge], str]":
    """The judges of content and style, and their names; where there can be none, a warning that says why: the sheet is
    for the eye all the same. Raises ValueError, OSError: there are none, and encoders were asked for by name."""
    from . import decompose_inputs

    try:
        return decompose_inputs.judges_of(inputs, encoders)
    except (OSError, ValueError) as error:
        if encoders:
            raise
        console.warn(f"the sheet is drawn, but which adapter is weak cannot be said: {error}")
        return {}, ""


def print_scores(drawn: "DrawnParts", judges: str) -> None:
    """Print how far what each adapter learnt comes out, what the numbers mean, and which adapter is weak."""
    from ..comparison.known_word_scale import ROLES
    from ..comparison.two_adapters import ALONE, BOTH, SUM, WITHOUT

    columns = ("", "without it", "alone", "both present", "the sum", "known words vary by")
    names = {"content": "the content in known styles", "style": "the style on known things"}
    rows = []
    for role in ROLES:
        means = (drawn.mean(part, role) for part in (WITHOUT[role], ALONE[role], BOTH[role], SUM))
        rows.append((names[role], *(f"{x:.2f}" for x in means), f"{drawn.spread[role]:.2f}"))
    tables.print_table(columns, rows)
    console.say(f"0: as any other word, 1: as alike as the base draws a word that it knows; by {judges}.")
    console.say(drawn.verdict())
