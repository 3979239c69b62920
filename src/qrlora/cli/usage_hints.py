"""Hints for words that are read otherwise than a person meant: for each verb one sentence with the command that does
it."""

import inspect
import itertools
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..config import TrainConfig
from ..config.image_settings import IMAGE_SUFFIXES
from . import console
from .named_values import nearest_setting

SETTINGS = tuple(TrainConfig.__dataclass_fields__)


def is_picture(word: str) -> bool:
    """Whether a word is named as pictures are."""
    return word.lower().endswith(IMAGE_SUFFIXES)


def is_adapter(word: str) -> bool:
    """Whether a word is an adapter's file, maybe with its strength, or a file at all."""
    return bool(re.search(r"\.safetensors(=[^=]*)?$", word)) or os.path.isfile(word)


def check_settings(words: Sequence[str]) -> None:
    """Refuse the words of `train` that are neither a recipe nor NAME=VALUE. Raises ValueError with what was meant."""
    for k, word in enumerate(words):
        name, equals, _ = word.partition("=")
        before = words[k - 1] if k else ""
        if equals and name:
            continue
        if is_picture(word) and "=" in before and os.path.isfile(f"{before.partition('=')[2]} {word}"):
            raise ValueError(f"a name with spaces needs quotes: {console.shell_command('train', f'{before} {word}')}")
        if is_picture(word) and before.startswith("image=") and os.path.isfile(word):
            hint = console.shell_command("train", before, f"image={word}")
            raise ValueError(f"several images are given one by one, {hint}, or as their folder, image=FOLDER")
        if is_picture(word):
            output = f"{Path(word).stem}.safetensors"
            hint = console.shell_command("train", f"image={word}", f"output={output}")
            raise ValueError(f"{word} is no setting, pictures are given as image=FILE: {hint}")
        if word in SETTINGS:
            raise ValueError(f"{word} has no value: write {word}=VALUE, without spaces around the sign")
        if "=" in before:
            raise ValueError(f"{word!r} is no setting; a value with spaces needs quotes: {_quoted(f'{before} {word}')}")
        raise ValueError(f"a setting reads NAME=VALUE and a recipe ends in .toml, got {word!r}")


def check_prompt(prompt: str, adapters: Sequence[str]) -> None:
    """Refuse words of `generate` that stand in each other's place. Raises ValueError with a hint at the right order."""
    refuse_picture(prompt)
    if is_adapter(prompt):
        given = next((word for word in adapters if not is_adapter(word)), "a <c>")
        others = [word for word in adapters if word != given]
        right = console.shell_command("generate", given, prompt, *others)
        raise ValueError(f"{prompt} is a file, the prompt comes first: {right}")
    for word in adapters:
        if " " in word and not is_adapter(word):
            right = console.shell_command("generate", word, *(x for x in adapters if is_adapter(x)))
            raise ValueError(f"{word!r} is no file; there is one prompt, which comes first: {right}")
    loose = list(itertools.takewhile(lambda x: re.fullmatch(r"[\w<>,'-]*[^\W\d][\w<>,'-]*", x), adapters))
    if loose and not any(os.path.exists(word) for word in loose):
        right = console.shell_command("generate", " ".join([prompt, *loose]), *adapters[len(loose) :])
        raise ValueError(f"{loose[0]} is no file; a prompt of several words needs quotes: {right}")


def check_adapters(words: Sequence[str], verb: Callable[..., Any], output: Path | None = None) -> None:
    """Refuse FILE[=STRENGTH] words of a verb that are no files, where it is clear what was meant: the last of several
    as the output, where that is still the verb's default. Raises ValueError with a hint."""
    parameters = inspect.signature(verb).parameters
    options = [name.replace("_", "-") for name in parameters if name != "adapters"]
    no_output = output is not None and output == parameters["output"].default
    for k, word in enumerate(words):
        name, equals, value = word.rpartition("=")
        if os.path.exists(word) or equals and os.path.exists(name):
            continue
        before = words[k - 1] if k else ""
        if before and re.fullmatch(r"[-+]?\d*\.?\d+", word):
            raise ValueError(f"a strength is joined to its file by =: {_quoted(f'{before}={word}')}")
        if split := re.fullmatch(r"(.+)[:@]([-+]?\d*\.?\d+)", word):
            raise ValueError(f"a strength is joined to its file by =: {_quoted(f'{split[1]}={split[2]}')}")
        if equals and "parameters" in options and re.fullmatch(r"[a-z_]+", name):
            raise ValueError(f"{word} is no file; a parameter of the rule is written {_quoted('--set', word)}")
        if k == len(words) - 1 and k and is_adapter(word) and no_output:
            raise ValueError(f"{word} does not exist; to write to it: {_quoted('-o', word)}")


def refuse_picture(word: str) -> None:
    """Refuse an image file where a verb wants an adapter. Raises ValueError with a hint at what makes one of it."""
    if is_picture(word) and os.path.isfile(word):
        output = f"{Path(word).stem}.safetensors"
        hint = console.shell_command("train", f"image={word}", f"output={output}")
        raise ValueError(f"{word} is a picture, not an adapter; train one on it: {hint}")


def usage_error_with_hint(error: Exception, words: Sequence[str]) -> str:
    """Typer's complaint about options, arguments or a verb, with a hint at what was meant or the command's example."""
    context = getattr(error, "ctx", None)
    path = context.command_path.split()[1:] if context else []  # of "qrlora survey new"
    rest = list(words)
    for verb in path:
        if verb in rest:
            rest.remove(verb)
    message = error.format_message().rstrip(".")  # pyright: ignore[reportAttributeAccessIssue]
    hint = HINTS.get(path[0] if path else "")
    meant = hint(rest) if hint and "Did you mean" not in message else ""
    example = _example(context)
    seen = console.shell_command(*path, "--help")
    return ". ".join(filter(None, (message, meant or example, f"See {seen}"))).replace("?.", "?")


def _example(context: object) -> str:
    """ "Example: ..." as in the command's help, without its marks."""
    return re.sub(r"\[/?bold\]", "", getattr(getattr(context, "command", None), "epilog", None) or "")


def _hint_without_verb(words: Sequence[str]) -> str:
    """The hint where an image, an adapter or a prompt stands in place of a verb."""
    word = next((x for x in words if not x.startswith("-")), "")
    if word == "bench":
        return _compare_hint(words[1:])
    if is_picture(word):
        output = f"output={Path(word).stem}.safetensors"
        return f"To train on it: {console.shell_command('train', f'image={word}', output)}"
    if is_adapter(word):
        return f"To see what is in it: {console.shell_command('inspect', word)}"
    return ""


def _train_hint(words: Sequence[str]) -> str:
    """The hint for `train --lr 1e-3`: an option that is no setting, but near one."""
    k, word = next(((k, x) for k, x in enumerate(words) if _is_unknown_setting(x)), (0, ""))
    name, equals, value = word.lstrip("-").partition("=")
    near = nearest_setting(name)
    value = value if equals else next(iter(words[k + 1 : k + 2]), "VALUE")
    return f"Did you mean {_quoted(f'{near}={value}')}?" if near else ""


def _is_unknown_setting(word: str) -> bool:
    """Whether a word is an option that is neither train's own nor one of its settings."""
    name = word.partition("=")[0].lstrip("-").replace("-", "_")
    return word.startswith("-") and name not in (*SETTINGS, "settings", "o")


def _demo_hint(words: Sequence[str]) -> str:
    """The hint for `demo cat.jpg` and `demo cat.jpg ink.jpg`."""
    found = [x.rpartition("=")[2] for x in words if is_picture(x)]
    if not found:
        return ""
    content, style = [*found, "PAINTING.jpg"][:2]
    right = console.shell_command("demo", "--content", content, "--style", style, "--style-shows", "cat")
    return f"Pictures are options: {right}"


def _grid_hint(words: Sequence[str]) -> str:
    """The hint for `grid "a <c>" A B` and `grid A`."""
    found = [x for x in words if is_adapter(x)]
    given = next((x for x in words if " " in x and x not in found), "")
    if given:
        return f"The prompt is an option: {console.shell_command('grid', *found[:2], '--prompt', given)}"
    return "" if len(found) > 1 else "A grid takes two adapters, the content's and the style's"


def _compare_hint(words: Sequence[str]) -> str:
    """The hint for `compare table4`, `compare tiny-sd3` and `compare qr pissa`."""
    names = [x for x in words if not x.startswith("-")]
    if names and re.fullmatch(r"(table|figure)\d+", names[0]):
        return f"The paper's results: {console.shell_command('reproduce', names[0])}"
    base = next((x for x in names if x.startswith("tiny-")), "")
    right = ("--base", base) if base else ("--methods", ",".join(names) or "qr,lora")
    return f"To compare methods: {console.shell_command('compare', *right)}"


HINTS: dict[str, Callable[[Sequence[str]], str]] = {
    "": _hint_without_verb,
    "train": _train_hint,
    "demo": _demo_hint,
    "grid": _grid_hint,
    "compare": _compare_hint,
}
"""Verb -> (its words) -> what was meant, "" if that is not clear."""


def _quoted(*words: str) -> str:
    """Words as a shell takes them."""
    return console.shell_command(*words).removeprefix("qrlora ")
