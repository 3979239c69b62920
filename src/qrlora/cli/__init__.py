"""The command line: one verb for one public function. Heavy rooms are imported by the verb that needs them."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core
from rich.markup import escape

from .. import __version__
from ..config import SampleConfig, TrainConfig, read_recipe
from . import console, doctor, ending, filing, hints, log_lines, rehearsing, studying, surveying, words
from .console import say


class Stopped(Exception):
    """Ctrl-C, with what to do next; typer would keep that to itself."""


class Verbs(typer.core.TyperGroup):
    """Our commands."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with ending.politely():
                return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise Stopped(str(stop) or "stopped") from stop


app = typer.Typer(
    name="qrlora",
    cls=Verbs,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Output = typer.Option("--output", "-o", help="File to write.")
Base = Annotated[str, typer.Option(help="Base model.", show_default="the one the adapters were made for")]
Revision = Annotated[str, typer.Option(help="Branch, tag or commit of a base on the hub.", show_default="main")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str, typer.Option(help="Numbers of the base: auto, float32, bfloat16 or float16.")]
Quantize = Annotated[str, typer.Option(help="Keep the base in fewer bits: nf4, int8 or float8.", show_default="no")]
Offload = Annotated[bool, typer.Option("--offload", help="Parts of the base enter the GPU one by one.")]
Seed = Annotated[int, typer.Option(help="Seed of the first picture; each further one adds 1.")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps.", show_default="the base's own")]
Guidance = Annotated[
    float | None, typer.Option(help="Classifier-free, or what a distilled base reads.", show_default="the base's own")
]
Size = Annotated[int | None, typer.Option(help="Side in pixels.", show_default="the base's own")]
AnyPrompt = Annotated[bool, typer.Option("--any-prompt", help="Warn, not stop, where the prompt lacks a trigger.")]
Negative = Annotated[str, typer.Option("--negative-prompt", help="What to keep out of the picture.")]


@app.callback(invoke_without_command=True)
def entry(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where in the code an error arose.")] = False,
) -> None:
    """QR-LoRA: content and style adapters that add, learnt from one picture each.

    New here? [bold]qrlora demo[/bold] learns a thing and a style from two pictures, merges them and draws the result.
    Each command's [bold]--help[/bold] has an example.
    """
    if version:
        say(f"qrlora {__version__}")
    elif context.invoked_subcommand is None:
        say(context.get_help())


@app.command(epilog="Example: [bold]qrlora train image=dog.png output=dog.safetensors[/bold]")
def train(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE.toml] [NAME=VALUE]...", help="A recipe, settings, or both.", show_default=False
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--settings", help="List every setting with its meaning, and stop.")] = False,
    overwrite: console.Overwrite = False,
) -> None:
    """Learn an adapter from one picture.

    A thing:
    [bold]qrlora train image=dog.png output=dog.safetensors[/bold]

    A style; say what the picture shows, so that only the manner is left to learn:
    [bold]qrlora train role=style image=cat.png "prompt=a cat in <s> style" output=ink.safetensors[/bold]

    Settings may stand in a recipe; those on the command line win:
    [bold]qrlora train recipes/content_sdxl.toml image=dog.png steps=800[/bold]
    """
    if show:
        console.table(("setting", "default", "meaning"), console.settings(TrainConfig), numbers=False)
        return
    recipe, told = words.recipe_and_settings(settings or ())
    config = read_recipe(recipe, told + ["overwrite=true"] * overwrite).checked()

    from . import learning

    learning.train(config)


@app.command(epilog="Example: [bold]qrlora merge dog.safetensors ink.safetensors=0.8 -o dog-ink.safetensors[/bold]")
def merge(
    adapters: Annotated[
        list[str], typer.Argument(metavar="FILE[=STRENGTH]", help="Adapter files; strength 1 if unsaid.")
    ],
    output: Annotated[Path, Output] = Path("merged.safetensors"),
    rule: Annotated[str, typer.Option(help="sum: rank stays; stack: ranks add; plain, ties, dare, knots.")] = "sum",
    content: Annotated[str, typer.Option(help="full, or compact: half the size, read by qrlora only.")] = "full",
    keys: Annotated[
        str | None, typer.Option(help="kohya or diffusers names.", show_default="what most tools read")
    ] = None,
    skip_text_encoders: filing.Skip = False,
    overwrite: console.Overwrite = False,
) -> None:
    """Add adapters into one file, for diffusers, ComfyUI, A1111 and others."""
    paths, strengths = words.with_strengths(adapters, merge)
    with filing.uncollected():
        from .. import files, merging

        filing.one_thread()
        there = filing.already(output)
        merged = merging.merge([filing.read(path, skip_text_encoders) for path in paths], strengths, rule)
        files.save(merged, output, content=content, keys=keys, overwrite=overwrite)
    filing.tell_merge(paths, merged.header)
    filing.tell(output, merged, "", there and not overwrite)


@app.command(epilog='Example: [bold]qrlora generate "a <c> in <s> style" dog.safetensors ink.safetensors=0.8[/bold]')
def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw, with the adapters' trigger words in it.")],
    adapters: Annotated[
        list[str] | None, typer.Argument(metavar="FILE[=STRENGTH]", help="Strength 1 if unsaid.", show_default=False)
    ] = None,
    output: Annotated[Path, Output] = Path("picture.png"),
    count: Annotated[int, typer.Option(help="How many pictures; more than one also make a sheet.")] = 1,
    seed: Seed = 0,
    base: Base = "",
    revision: Revision = "",
    negative: Negative = "",
    steps: Steps = None,
    guidance: Guidance = None,
    size: Size = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = "",
    offload: Offload = False,
    skip_text_encoders: filing.Skip = False,
    any_prompt: AnyPrompt = False,
    overwrite: console.Overwrite = False,
) -> None:
    """Draw pictures with a base model and any number of adapters."""
    from . import drawing

    hints.check_prompt(prompt, adapters or [])
    paths, strengths = words.with_strengths(adapters or [], generate)
    settings: dict[str, Any] = dict(prompt=prompt, negative_prompt=negative, steps=steps, guidance=guidance, seed=seed)
    settings |= dict(count=count, size=size, adapters=tuple(paths), strengths=tuple(strengths))
    settings |= dict(device=device, dtype=dtype, quantize=quantize, offload=offload, revision=revision)
    how = drawing.Leave(skip_text_encoders, any_prompt)
    drawing.generate(SampleConfig(**settings, base=base, output=output, overwrite=overwrite), how)


@app.command(epilog="Example: [bold]qrlora grid dog.safetensors ink.safetensors --style-strengths 0,0.5,1,1.5[/bold]")
def grid(
    content: Annotated[str, typer.Argument(help="The content adapter's file.")],
    style: Annotated[str, typer.Argument(help="The style adapter's file.")],
    prompt: Annotated[str, typer.Option(help="What to draw.")] = "a <c> in <s> style",
    content_strengths: Annotated[str, typer.Option(help="From top to bottom.")] = "0,0.5,1",
    style_strengths: Annotated[str, typer.Option(help="From left to right.")] = "0,0.25,0.5,0.75,1",
    output: Annotated[Path, Output] = Path("grid.png"),
    seed: Annotated[int, typer.Option(help="One seed for all pictures.")] = 0,
    base: Base = "",
    revision: Revision = "",
    negative: Negative = "",
    steps: Steps = None,
    guidance: Guidance = None,
    size: Size = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = "",
    offload: Offload = False,
    skip_text_encoders: filing.Skip = False,
    any_prompt: AnyPrompt = False,
    overwrite: console.Overwrite = False,
) -> None:
    """Draw a picture for each pair of content and style strengths (the paper's figure 7)."""
    from . import drawing

    settings: dict[str, Any] = dict(prompt=prompt, negative_prompt=negative, steps=steps, guidance=guidance, seed=seed)
    settings |= dict(size=size, adapters=(content, style))
    settings |= dict(device=device, dtype=dtype, quantize=quantize, offload=offload, revision=revision)
    how = drawing.Leave(skip_text_encoders, any_prompt)
    config = SampleConfig(**settings, base=base, output=output, overwrite=overwrite)
    drawing.grid(config, words.numbers(content_strengths), words.numbers(style_strengths), how)


@app.command(epilog="Example: [bold]qrlora inspect dog.safetensors ink.safetensors[/bold]")
def inspect(
    adapters: Annotated[list[str], typer.Argument(metavar="FILE", help="One file, or two to compare.")],
    plot: Annotated[
        Path | None, typer.Option(help="Where to draw.", show_default="two files: A-B-similarity.png")
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="A line for each layer instead of each block.")] = False,
    skip_text_encoders: filing.Skip = False,
    overwrite: console.Overwrite = False,
) -> None:
    """Show what is in an adapter file; with two files, also how alike they are."""
    with filing.uncollected():
        from . import inspecting

        filing.one_thread()
        drawn = inspecting.inspect(adapters, plot, layers, overwrite, skip_text_encoders)
    if drawn:
        say(f"plot: {drawn}")


for command, example in (*filing.COMMANDS, *studying.COMMANDS):
    app.command(epilog=f"Example: [bold]{example}[/bold]")(command)
app.add_typer(studying.bench, name="bench")
app.add_typer(surveying.survey, name="survey")


@app.command(epilog="Example: [bold]qrlora demo --content my-dog.png --style painting.png --style-shows cat[/bold]")
def demo(
    content: Annotated[Path | None, typer.Option(help="A picture of a thing.", show_default="one of ours")] = None,
    style: Annotated[Path | None, typer.Option(help="A picture in a style.", show_default="one of ours")] = None,
    style_shows: Annotated[str, typer.Option(help="What your style picture shows, in a word: cat, house.")] = "thing",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("out/demo"),
    base: Annotated[str, typer.Option(help="Base model.")] = "tiny-flux",
    method: Annotated[str, typer.Option(help="qr, qr-output, qr-triangular, qr-direct or lora.")] = "qr",
    steps: Annotated[int | None, typer.Option(help="Updates of each adapter.", show_default="the base's own")] = None,
    count: Annotated[int, typer.Option(help="Pictures of each kind.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Few updates: shows the workings, not the method.")] = False,
    device: Device = "auto",
    overwrite: console.Overwrite = False,
) -> None:
    """Learn a thing and a style from two pictures, merge them, draw: one contact sheet, three adapter files."""
    from . import showing

    if quick:
        steps, count = steps or 10, min(count, 2)
    showing.demo(output, content, style, style_shows, base, method, steps, count, seed, device, overwrite)


app.command(epilog=f"Example: [bold]{rehearsing.EXAMPLE}[/bold]")(rehearsing.rehearse)

app.command("doctor", epilog=f"Example: [bold]{doctor.EXAMPLE}[/bold]")(doctor.print_report)


@app.command(epilog="Example: [bold]qrlora bases[/bold]")
def bases() -> None:
    """List the base models that are built in, and what else can be one."""
    from . import listing

    listing.bases()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0, or 2 with one line on standard error, or 130 after Ctrl-C."""
    console.speak_any_encoding()
    typed = list(sys.argv[1:] if arguments is None else arguments)
    traceback = "--traceback" in typed
    typed = [word for word in typed if word != "--traceback"]
    if typed[:1] == ["help"]:
        typed = [*typed[1:], "--help"]
    try:
        # typer would print its own errors over many lines
        with log_lines.shown():
            sys.exit(app(typed, prog_name="qrlora", standalone_mode=False))
    except (KeyboardInterrupt, Stopped) as stop:
        console.err.print(escape(str(stop) or "stopped"))
        sys.exit(130)
    except Exception as error:
        usage = hasattr(error, "format_message")  # typer's: a wrong option, a missing argument, no such verb
        message = hints.for_usage(error, typed) if usage else console.for_people(error)
        if traceback or message is None:
            raise
        console.fail(message)
        sys.exit(2)
