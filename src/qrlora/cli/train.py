"""`qrlora train`: an adapter from one image, with a progress bar, previews and the command that samples with it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config import TrainConfig, as_dict, read_recipe
from ..config.setting_descriptions import settings_rows
from . import console, options, tables
from .arguments import recipe_and_settings
from .progress_bar import progress_bar
from .unknown_words import warn_of_unknown_words

if TYPE_CHECKING:
    from ..training import Progress

EXAMPLE = "qrlora train image=dog.png output=dog.safetensors"


def train(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE.toml] [NAME=VALUE]...", help="A recipe, settings, or both.", show_default=False
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--settings", help="List every setting with its meaning, and stop.")] = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Train an adapter on one image, or on several of one subject or style.

    A subject:
    [bold]qrlora train image=dog.png output=dog.safetensors[/bold]

    A style; say what the image shows, so that only the style is left to train:
    [bold]qrlora train role=style image=cat.png "prompt=a cat in <s> style" output=ink.safetensors[/bold]

    Several images, with captions in text files of their names or one prompt for all; a list reads image=a.png,b.png:
    [bold]qrlora train role=style image=paintings/ "prompt=a picture in <s> style" output=ink.safetensors[/bold]

    Settings may stand in a recipe; those on the command line win. Each of them reads --steps 800 or steps=800:
    [bold]qrlora train recipes/content_sdxl.toml image=dog.png steps=800[/bold]
    """
    if show:
        tables.print_table(("setting", "default", "meaning"), settings_rows(TrainConfig), numbers=False)
        return
    recipe, overrides = recipe_and_settings(settings or ())
    run_training(read_recipe(recipe, overrides + ["overwrite=true"] * overwrite).checked())


def run_training(config: TrainConfig) -> None:
    """Train with a bar, and say how to sample with the adapter. Of several processes, rank 0 speaks.

    Raises: as `training.train`.
    """
    from .. import optional_dependencies, output_files

    optional_dependencies.require("diffusers", reason="qrlora train")
    from .. import training

    if not training.is_rank_zero():
        training.train(config, on_preview=lambda _step, _image: None)
        return
    warn_of_unknown_words(config.base, training_prompts(config), [config.trigger])
    output, updates = Path(config.output), []
    with progress_bar(output.stem) as bar:

        def on_step(progress: "Progress") -> None:
            updates.append(progress.step)
            bar.step(progress.step, progress.steps, f"loss {progress.loss:.4f}")

        def on_preview(step: int, image: Any) -> None:
            with output_files.warn_if_unwritable("the training goes on without this preview"):
                save_preview(config, step, image)

        adapter = training.train(config, on_step=on_step, on_preview=on_preview, on_stage=bar.stage)
    done_before = "" if updates else ", done before: the file is left as it is (--overwrite learns it anew)"
    size = tables.file_size(output)
    console.say(f"{output}: {len(adapter.layers)} layers, rank {adapter.rank}, {size}{done_before}")
    if updates and training.world_size() > 1:
        console.say(f"trained by {training.world_size()} processes")
    console.say(f"generate with it: {console.shell_command('generate', adapter.header.prompt, output)}")


def training_prompts(config: TrainConfig) -> Iterator[str]:
    """All that a run gives its base to read: the images' captions, and the prompt of its previews."""
    from ..training.training_images import find_training_images

    yield from (image.caption for image in find_training_images(config))
    yield config.preview_prompt


def save_preview(config: TrainConfig, step: int, image: Any) -> None:
    """Save a training's preview beside the output; over the one that this very command drew before it was stopped, but
    over no other."""
    from .. import output_files, plots

    output, made_with = Path(config.output), json.dumps(as_dict(config))
    path = output.with_name(f"{output.stem}-{step:05}.png")
    replaces = config.overwrite or plots.made_with(path) == made_with
    plots.save_picture(image, path if replaces else output_files.first_free_name(path, os.path.lexists), made_with)
