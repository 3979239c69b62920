"""Settings of a verb as people write them: `steps=800` and `--steps 800` mean the same on every verb."""

import difflib
import os
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import typer.core

from ..config import TrainConfig
from .help_tables import fill


class VerbCommand(typer.core.TyperCommand):
    """A verb whose options may be written NAME=VALUE, too, and whose help names what is in tables."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, named_values_as_options(args, self.params))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Fill the help texts of a verb's options before they are shown."""
        for parameter in self.params:
            help_text = getattr(parameter, "help", None)
            if help_text:
                parameter.help = fill(help_text)  # pyright: ignore[reportAttributeAccessIssue]
        super().format_help(ctx, formatter)


class SettingsCommand(VerbCommand):
    """`train`: its settings are NAME=VALUE words, and every one of them may be written --NAME VALUE, too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, options_as_named_values(args, self.params))


def named_values_as_options(words: Sequence[str], parameters: Sequence[Any]) -> list[str]:
    """Words of a verb with each NAME=VALUE that names one of its options written as that option.

    A word that is a file as it stands, or whose NAME is one, stays: FILE=STRENGTH. What follows an option that takes a
    value stays as well, and all that comes after `--`.

    Raises: typer.BadParameter: a value of a flag that is neither true nor false.
    """
    options = {name: p for p in parameters for name in p.opts if name.startswith("-")}
    written: list[str] = []
    for kind, word in _kinds_of_words(words, options):
        name, equals, value = word.partition("=")
        option = options.get(f"--{name.replace('_', '-')}")
        if kind != "word" or not equals or option is None or os.path.exists(word) or os.path.exists(name):
            written.append(word)
        elif not option.is_flag:
            written += [option.opts[0], value]
        elif value.lower() not in ("true", "false"):
            raise typer.BadParameter(f"{name} must be true or false, got {value!r}")
        else:
            written += [option.opts[0]] * (value.lower() == "true")
    return written


def options_as_named_values(words: Sequence[str], parameters: Sequence[Any]) -> list[str]:
    """Words of `train` with each --NAME VALUE, --NAME=VALUE, --FLAG and --no-FLAG of a setting written NAME=VALUE."""
    own = {name for p in parameters for name in p.opts if name.startswith("-")} | {"-h", "--help"}
    flags = [name for name, hint in typing.get_type_hints(TrainConfig).items() if _is_flag(hint)]
    written: list[str] = []
    rest = iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        name = {"-o": "output"}.get(option, option.removeprefix("--").replace("-", "_"))
        turned_off = name.removeprefix("no_")
        if not word.startswith("-") or option in own:
            written.append(word)
        elif name in flags:
            written.append(f"{name}={value or 'true'}")
        elif name != turned_off and turned_off in flags:
            written.append(f"{turned_off}=false")
        elif name in TrainConfig.__dataclass_fields__:
            value = value if equals else next(rest, None)
            if value is None:
                raise typer.BadParameter(f"Option '{option}' requires an argument")
            written.append(f"{name}={value}")
        else:
            written.append(word)
    return written


def nearest_setting(name: str) -> str:
    """The setting of `train` that a name is nearest to, "" if none is near."""
    name = {"lr": "learning_rate", "o": "output"}.get(name, name.replace("-", "_"))
    return next(iter(difflib.get_close_matches(name, TrainConfig.__dataclass_fields__, n=1)), "")


def _kinds_of_words(words: Sequence[str], options: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The kinds of a verb's words: "option", "value" of the option before, "word", or "last" after `--`."""
    rest = iter(words)
    for word in rest:
        if word == "--":
            yield "option", word
            yield from (("last", x) for x in rest)
        elif word.startswith("-") and word != "-":
            yield "option", word
            option = options.get(word)
            if option is not None and not option.is_flag and "=" not in word:
                yield from (("value", x) for x in [next(rest, None)] if x is not None)
        else:
            yield "word", word


def _is_flag(hint: Any) -> bool:
    return hint is bool or isinstance(hint, types.UnionType) and bool in typing.get_args(hint)
