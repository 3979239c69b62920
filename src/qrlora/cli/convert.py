"""`qrlora convert`: a LoRA of any tool with another content or under other names."""

from typing import Annotated

import typer

from ..lora_keys import WRITTEN
from . import adapter_files, console, options, process_settings

EXAMPLE = "qrlora convert lora.safetensors for-comfyui.safetensors --keys kohya"
CONTENTS = ("full", "compact")
DTYPES = ("float32", "bfloat16", "float16")


def convert(
    source: options.LoraIn,
    output: options.LoraOut,
    content: options.Content = "full",
    keys: options.Keys = None,
    to: Annotated[str | None, typer.Option(help="The old name of both options.", hidden=True)] = None,
    dtype: Annotated[str, typer.Option(help="dtype in the file: float32, bfloat16 or float16.")] = "float32",
    skip_text_encoders: options.SkipTextEncoders = False,
    base: Annotated[str, typer.Option(help="The base model, for a LoRA of PEFT that starts within its weights.")] = "",
    overwrite: options.Overwrite = False,
) -> None:
    """Write a LoRA of any tool in the names of another, at the same strength.

    --content says what is written (compact: B alone, half the size, read by qrlora only), --keys under which names.
    A LoRA that starts within the base's weights (pissa, olora) becomes an ordinary one with --base, at twice the rank.
    """
    from .. import files

    if to is not None:
        content, keys = content_and_keys(to, content, keys)
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    import torch

    existed = adapter_files.check_output(output)
    process_settings.use_one_thread()
    weight = adapter_files.base_weights(base) if base else None
    adapter = adapter_files.read_adapter(source, skip_text_encoders, weight)
    files.save(adapter, output, content=content, keys=keys, dtype=getattr(torch, dtype), overwrite=overwrite)
    spelling = f", {keys or content}"
    adapter_files.report_written(output, adapter, spelling, existed and not overwrite)


def content_and_keys(to: str, content: str, keys: str | None) -> tuple[str, str | None]:
    """What --to of `qrlora convert`, which was both, means as (content, keys). Raises ValueError: it is neither, or the
    option beside it says something else."""
    if to not in (*CONTENTS, *WRITTEN):
        raise ValueError(f"--to must be one of {', '.join((*CONTENTS, *WRITTEN))}, got {to!r}")
    option = "keys" if to in WRITTEN else "content"
    if option == "keys" and keys not in (None, to) or option == "content" and content not in ("full", to):
        given = keys if option == "keys" else content
        raise ValueError(f"--to {to} is the old name of --{option} {to}, beside --{option} {given}: leave --to out")
    console.warn(f"--to {to} is now --{option} {to}; the old name goes with 0.3")
    return (content, to) if option == "keys" else (to, keys)
