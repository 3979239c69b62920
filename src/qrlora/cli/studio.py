"""`qrlora studio`: training and mixing on pages in a browser."""

import os
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from . import console, options

EXAMPLE = "qrlora studio out/studio"


def studio(
    folder: Annotated[Path, typer.Argument(help="Where everything is kept.")] = Path("out/studio"),
    port: Annotated[int, typer.Option(help="0: any.")] = 8810,
    devices: Annotated[str, typer.Option(help="One run at a time on each: cuda:0,cuda:1.")] = "auto",
    base: Annotated[
        list[str] | None, typer.Option(help="A base to offer: a folder, file or hub name.", show_default="built-in")
    ] = None,
    browser: Annotated[bool, typer.Option("--browser", help="Open it in a browser.")] = False,
) -> None:
    """Train on pictures and mix adapters in a browser, on this machine alone, until Ctrl-C.

    Runs go on without the pages, and without the server. Start it again on the same folder to see them.
    """
    if os.name != "posix":
        raise ValueError("the studio needs the file locks of Linux and macOS; on Windows run it in WSL")
    from ..studio.serving import serve_studio

    def on_ready(address: str) -> None:
        console.say(address)
        if browser:
            webbrowser.open(address)

    going_on = serve_studio(
        folder, port=port, devices=options.split_names(devices), bases=base or (), on_ready=on_ready
    )
    if going_on:
        console.say(f"{going_on} run{'s' * (going_on > 1)} without the studio; open it again to see or stop it")
