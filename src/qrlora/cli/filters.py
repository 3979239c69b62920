"""`qrlora filters`: filtered copies of a content's picture with captions, to train on beside it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..config import TRIGGERS, TrainConfig
from ..trigger_words import contains_word
from . import console, options

EXAMPLE = 'qrlora filters dog.png "a photo of a <c>" --base my_base --output dog'


def filters(
    image: Annotated[Path, typer.Argument(help="A picture of a content.")],
    prompt: Annotated[
        str,
        typer.Argument(
            help='Its caption; a filter\'s name takes the place of "plain" in it, or stands at the end.',
            show_default="a <c> in plain style for a built-in base, else a photo of a <c>",
        ),
    ] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("filtered"),
    names: Annotated[
        str, typer.Option(help="Filters, with commas between.", show_default="all, see docs/several_images.md")
    ] = "",
    base: Annotated[str, typer.Option(help="Base model: a built-in one has filters of its own.")] = TrainConfig.base,
    overwrite: options.Overwrite = False,
) -> None:
    """Write filtered copies of a content's picture, each with a caption that names its filter, to train on them all.

    A content learnt from one picture alone is tied to its manner. Copies in black and white, in negative ... whose
    captions say so show what of it is manner. Measured on the built-in bases alone.
    """
    from ..built_in_bases import built_in_bases
    from ..families.base_location import family_of_base
    from ..filtered_images import COMMON_FILTERS, write_filtered_images
    from ..world.drawings import SIZE
    from ..world.style_filters import known_filters

    family_of_base(base)  # refused before anything is written
    built_in = base in built_in_bases()
    chosen = _chosen(known_filters() if built_in else COMMON_FILTERS, names)
    prompt = prompt or ("a <c> in plain style" if built_in else "a photo of a <c>")
    written = write_filtered_images(image, prompt, output, chosen, SIZE if built_in else None, overwrite)
    console.say(f"{len(written)} images with captions in {output}, the first as it is. Train with")
    if not contains_word(prompt, TRIGGERS["content"]):
        console.warn(f"the caption {prompt!r} lacks {TRIGGERS['content']}: train with trigger=WORD, a word that it has")
    of_base = [f"base={base}"] * (base != TrainConfig.base)
    console.say(console.shell_command("train", f"image={output}", *of_base))


def _chosen(filters: Mapping[str, Callable[..., Any]], names: str) -> dict[str, Callable[..., Any]]:
    """The filters of these names, or all. Raises ValueError: no such filter."""
    wanted = options.split_names(names) or tuple(filters)
    for name in wanted:
        if name not in filters:
            raise ValueError(f"there is no filter {name!r}; there are {', '.join(filters)}")
    return {name: filters[name] for name in wanted}
