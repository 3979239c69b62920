"""`qrlora words`: which words that a base knows come near to a picture's content or style."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..config import TRIGGERS, TrainConfig
from . import console, options, tables

EXAMPLE = 'qrlora words ink.png "a cat in <s> style" --words watercolor,woodcut,sepia'


def words(
    image: Annotated[Path, typer.Argument(help="A picture to train on.")],
    prompt: Annotated[str, typer.Argument(help='Its caption, "a <c>" of a content, "a cat in <s> style" of a style.')],
    words: Annotated[
        str,
        typer.Option(help="To try, with commas between; or a text file with one a line.", show_default="common ones"),
    ] = "",
    base: options.Base = TrainConfig.base,
    revision: options.Revision = "",
    shown: Annotated[int, typer.Option(help="Words to show, the best first; more take longer.")] = 4,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quantize: options.Quantize = "",
    offload: options.Offload = False,
) -> None:
    """Find a word that the base knows for a picture's content or style, to train under in place of <c> or <s>.

    The word under which the base's own loss on the picture is least. What that is worth was measured on the built-in
    bases alone, whose own words are tried where none are given.
    """
    from .. import optional_dependencies

    optional_dependencies.require("diffusers", reason="qrlora words")
    from ..families import open_base
    from ..image_loading import MIN_SIDE, load_image
    from ..known_words import search_words_of_file
    from .progress_bar import progress_bar

    role = _role_of_caption(prompt)
    placeholder = TRIGGERS[role]
    if shown < 1:
        raise ValueError(f"shown must be 1 or more, got {shown}")
    load_image(image, MIN_SIDE)  # refused before a base is opened, which takes long
    tried = _given_words(words, placeholder) if words else _words_of_base(base, role)
    with progress_bar("trying words") as bar:
        bar.stage("opening the base model")
        opened = open_base(base, device, dtype, quantize, offload, revision)
        bar.stage("encoding the image and the captions")
        template = prompt.replace(placeholder, "{}")
        losses = search_words_of_file(opened, image, template, role, tried, seed, shown, on_round=bar.step)
    rows = [(x, loss, loss / losses[placeholder]) for x, loss in losses.items()]
    columns = ("word", "loss", f"times that of {placeholder}")
    tables.print_table(columns, [(x, f"{loss:.4f}", f"{times:.2f}") for x, loss, times in rows])
    _say_what_to_train_with(losses, {"image": image, "role": role, "prompt": prompt, "base": base})


def _role_of_caption(prompt: str) -> str:
    """The role whose trigger a caption has. Raises ValueError: that of none or of both, or twice."""
    from ..trigger_words import contains_word

    found = [role for role, word in TRIGGERS.items() if contains_word(prompt, word)]
    if len(found) != 1 or prompt.count(TRIGGERS[found[0]]) != 1:
        raise ValueError(f'the caption needs <c> or <s> once, such as "a <c>" or "a cat in <s> style", got {prompt!r}')
    return found[0]


def _say_what_to_train_with(losses: Mapping[str, float], settings: dict[str, Any]) -> None:
    """Print whether a word is near, and the command that trains under it.

    Args: settings: of `train`; the prompt with the placeholder, the base as it was given.
    """
    from ..known_words import NEAR, nearest_word

    placeholder = TRIGGERS[settings["role"]]
    word = nearest_word(losses, placeholder)
    if word == placeholder:
        return console.say(
            f"None is near, of less than {NEAR:g} times the loss under {placeholder}: keep {placeholder}."
        )
    changed = {"trigger": word, "prompt": settings["prompt"].replace(placeholder, word)}
    if settings["base"] == TrainConfig.base:
        del settings["base"]
    console.say(f"{word} is near. Train with")
    console.say(console.shell_command("train", *(f"{name}={x}" for name, x in {**settings, **changed}.items())))


def _words_of_base(base: str, role: str) -> Sequence[str]:
    """The words to try where none are given: all of a built-in base's, else common ones."""
    from ..built_in_bases import built_in_bases
    from ..known_words import COMMON_CONTENTS, COMMON_STYLES
    from ..world.captions import known_words

    if base in built_in_bases():
        return known_words(role)
    return COMMON_CONTENTS if role == "content" else COMMON_STYLES


def _given_words(text: str, placeholder: str) -> list[str]:
    """The words of --words but for the placeholder, which is tried anyway. Raises: OSError.  ValueError: no text file;
    no words."""
    from ..text_files import read_text

    path = Path(text)
    # os.path.isfile: a list may be longer than a file's name can be, which Path.is_file takes for an error
    lines = read_text(path).splitlines() if path.suffix == ".txt" or os.path.isfile(text) else text.split(",")
    found = [x for x in dict.fromkeys(line.strip() for line in lines) if x not in ("", placeholder)]
    if not found:
        raise ValueError(f"--words {text} holds no words: give some with commas between, or a file with one a line")
    return found
