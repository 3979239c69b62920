"""`qrlora words`: which words that a base knows come near to a picture's content or style."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..config import TrainConfig
from . import console, options, tables

EXAMPLE = 'qrlora words ink.png "a cat in <s> style" --words watercolor,woodcut,sepia'
PLACEHOLDERS = {"content": "<c>", "style": "<s>"}


def words(
    image: Annotated[Path, typer.Argument(help="A picture to train on.")],
    prompt: Annotated[str, typer.Argument(help='Its caption, "a <c>" of a content, "a cat in <s> style" of a style.')],
    words: Annotated[
        str,
        typer.Option(help="To try, with commas between; or a text file with one a line.", show_default="common ones"),
    ] = "",
    base: options.Base = TrainConfig.base,
    revision: options.Revision = "",
    shown: Annotated[int, typer.Option(help="How many words to show, the best first.")] = 8,
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
    from ..known_words import COPIES, NEAR, nearest_word, word_losses
    from ..trigger_words import contains_word
    from .progress_bar import progress_bar

    found = [role for role, word in PLACEHOLDERS.items() if contains_word(prompt, word)]
    if len(found) != 1 or prompt.count(PLACEHOLDERS[found[0]]) != 1:
        raise ValueError(f'the caption needs <c> or <s> once, such as "a <c>" or "a cat in <s> style", got {prompt!r}')
    if shown < 1:
        raise ValueError(f"shown must be 1 or more, got {shown}")
    (role,) = found
    placeholder = PLACEHOLDERS[role]
    load_image(image, MIN_SIDE)  # refused before a base is opened, which takes long
    tried = [placeholder, *(_given_words(words) if words else _words_of_base(base, role))]
    opened = open_base(base, device, dtype, quantize, offload, revision)
    cropped = load_image(image, opened.defaults.resolution)
    with progress_bar("trying words") as bar:
        losses = word_losses(
            opened, cropped, prompt.replace(placeholder, "{}"), tried, COPIES[role], seed, on_word=bar.step
        )
    best = [x for x in losses if x != placeholder][:shown]
    rows = [
        (x, f"{losses[x]:.4f}", f"{losses[x] / losses[placeholder]:.2f}") for x in losses if x in (placeholder, *best)
    ]
    tables.print_table(("word", "loss", f"times that of {placeholder}"), rows)
    word = nearest_word(losses, placeholder)
    if word == placeholder:
        return console.say(
            f"No word is near, of less than {NEAR:g} times the loss under {placeholder}: keep {placeholder}."
        )
    caption = prompt.replace(placeholder, word)
    settings = (f"image={image}", f"role={role}", f"trigger={word}", f"prompt={caption}")
    console.say(f"{word} is near. Train with")
    console.say(console.shell_command("train", *settings))


def _words_of_base(base: str, role: str) -> Sequence[str]:
    """The words to try where none are given: all of a built-in base's, else common ones."""
    from ..built_in_bases import built_in_bases
    from ..known_words import COMMON_CONTENTS, COMMON_STYLES
    from ..world.captions import known_words

    if base in built_in_bases():
        return known_words(role)
    return COMMON_CONTENTS if role == "content" else COMMON_STYLES


def _given_words(text: str) -> list[str]:
    """The words of --words. Raises: OSError.  ValueError: no text file; no words."""
    from ..text_files import read_text

    path = Path(text)
    lines = read_text(path).splitlines() if path.suffix == ".txt" or path.is_file() else text.split(",")
    found = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not found:
        raise ValueError(f"--words {text} holds no words: give some with commas between, or a file with one a line")
    return found
