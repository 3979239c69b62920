"""The command line: runs a verb, and ends with an exit code and one line where something is wrong."""

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
import typer.core
from rich.markup import escape

from .. import __version__
from ..error_messages import error_message
from . import console, log_lines, stop_signals, usage_hints, verbs

OUT_OF_MEMORY = (
    "try dtype=bfloat16, offload=true and quantize=int8 (train), "
    "--dtype bfloat16 --offload --quantize int8 (generate, grid), a smaller resolution or size, or device=cpu"
)


class Stopped(Exception):
    """Ctrl-C, with what to do next; typer would keep that to itself."""


class VerbGroup(typer.core.TyperGroup):
    """All verbs."""

    def invoke(self, ctx: Any) -> Any:
        """Run a verb of the command line; a signal ends it as Ctrl-C does."""
        try:
            with stop_signals.stop_signals_as_keyboard_interrupt():
                return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise Stopped(str(stop) or "stopped") from stop


app = typer.Typer(
    name="qrlora",
    cls=VerbGroup,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
verbs.add_verbs(app)


@app.callback(invoke_without_command=True)
def entry(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where in the code an error arose.")] = False,
) -> None:
    """QR-LoRA: content and style adapters that add, trained on one image each.

    New here? [bold]qrlora demo[/bold] trains a subject and a style on two images, merges them and draws the result.
    Each command's [bold]--help[/bold] has an example. Settings read --steps 800 or steps=800, as you like.
    """
    if version:
        console.say(f"qrlora {__version__}")
    elif context.invoked_subcommand is None:
        console.say(context.get_help())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0, or 2 with one line on standard error, or 130 after Ctrl-C."""
    console.escape_what_streams_cannot_encode()
    typed = list(sys.argv[1:] if arguments is None else arguments)
    traceback = "--traceback" in typed
    typed = [word for word in typed if word != "--traceback"]
    asks_help = typed[:1] == ["help"]
    typed, deprecation = verbs.renamed(typed[1:] if asks_help else typed)
    typed += ["--help"] * asks_help
    if deprecation:
        console.warn(deprecation)
    try:
        # typer would print its own errors over many lines
        with log_lines.log_to_standard_error():
            sys.exit(app(typed, prog_name="qrlora", standalone_mode=False))
    except (KeyboardInterrupt, Stopped) as stop:
        console.err.print(escape(str(stop) or "stopped"))
        sys.exit(130)
    except Exception as error:
        usage = hasattr(error, "format_message")  # typer's: a wrong option, a missing argument, no such verb
        message = usage_hints.usage_error_with_hint(error, typed) if usage else error_message(error, OUT_OF_MEMORY)
        if traceback or message is None:
            raise
        console.fail(message)
        sys.exit(2)
