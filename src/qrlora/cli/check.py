"""`qrlora check`: which keys of a LoRA file each tool loads, ignores, or loads at the wrong strength."""

import collections
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..error_messages import error_message
from ..lora_keys import WRITTEN, printable
from . import console, tables, usage_hints
from .adapter_files import with_own_name
from .process_settings import use_one_thread

if TYPE_CHECKING:
    from ..compat import CheckedFile, Verdict

EXAMPLE = "qrlora check lora.safetensors --for comfyui"
STATES = ("loaded", "ignored", "wrong strength", "not judged")


def check(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A LoRA file of any tool.")],
    tools: Annotated[list[str] | None, typer.Option("--for", help="{tools}", show_default="all")] = None,
) -> None:
    """Say which keys of a file a tool would load, silently ignore, or load at the wrong strength.

    The exit code is 0 if every tool that was asked for loads all at the right strength, 1 if one does not.
    """
    from .. import compat, safetensors_files
    from ..files.load_adapter import file_in

    usage_hints.refuse_picture(str(path))
    use_one_thread()
    found = file_in(path)
    file = compat.CheckedFile(*safetensors_files.read_safetensors(found), found)
    rows, causes = [], []
    remedies: dict[str, list[str]] = {}
    for tool in tools or list(compat.TOOLS):
        try:
            verdicts = compat.key_verdicts(file, tool)
        except ValueError as error:
            if tool not in compat.TOOLS:
                raise
            raise ValueError(f"{path}: {error}") from error
        states = collections.Counter(verdict.state for verdict in verdicts)
        rows.append((tool, *(str(states[x]) for x in STATES)))
        if states["loaded"] < len(verdicts) or not verdicts:
            named = with_own_name(path)
            copy = named.with_name(f"{named.stem}-converted.safetensors")
            remedies.setdefault(command_that_helps(path, copy, tool), []).append(tool)
        causes += [(tool, *cause) for cause in grouped_causes(verdicts)]
        causes += [(tool, "", note, "") for note in compat.tool_notes(file, tool)]
    tables.print_table(("tool", *STATES), rows, title=f"{path}: {len(file.tensors)} keys")
    if causes:
        tables.print_table(("tool", "keys", "why", "such as"), causes, numbers=False)
    for command, helped in remedies.items():
        console.say(f"{', '.join(helped)}: {command}")
    if remedies:
        raise typer.Exit(1)


def command_that_helps(path: Path, output: Path, tool: str) -> str:
    """For `qrlora check`: the command after which a tool would load all of a file, found by trying the names that we
    write; or why there is none."""
    import torch

    from .. import compat, files
    from ..files.save_adapter import tensors_and_metadata

    try:
        adapter = files.load(path, skip_text_encoders=True)
    except (ValueError, OSError) as error:  # OSError: a compact file whose basis is not in this machine's cache
        cause = error_message(error, out_of_memory="") or ""
        return f"none: qrlora does not read this file: {printable(cause, console.MAX_SHOWN)}"
    left_out = ["--skip-text-encoders"] if files.count_text_encoder_keys(path) else []
    for keys in (None, *WRITTEN):
        try:
            file: CheckedFile = compat.CheckedFile(
                *tensors_and_metadata(adapter.layers, adapter.header, "full", keys, torch.float32)
            )
        except ValueError:  # names that cannot spell these layers
            continue
        if all(verdict.state == "loaded" for verdict in compat.key_verdicts(file, tool)):
            return console.shell_command("convert", path, output, *(["--keys", keys] if keys else []), *left_out)
    return "none: no names under which it loads all of this adapter"


def grouped_causes(verdicts: "list[Verdict]") -> list[tuple[str, str, str]]:
    """For `qrlora check`: (how many keys, why, one of them) of what is not loaded as it should be."""
    groups: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.state != "loaded":
            strength = f" {verdict.factor:.3g} x" if verdict.state == "wrong strength" else ""
            groups.setdefault((f"{verdict.state}{strength}", verdict.reason), []).append(verdict)
    return [(f"{len(x)} {state}", reason, x[0].key) for (state, reason), x in groups.items()]
