"""Options and arguments that several verbs share. `{methods}` and the like in a help text: see help_tables.py."""

from pathlib import Path
from typing import Annotated

import typer

File = typer.Option("--output", "-o", help="File to write.")
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there already.")]
SkipTextEncoders = Annotated[bool, typer.Option("--skip-text-encoders", help="Leave out the layers of text encoders.")]
LoraIn = Annotated[Path, typer.Argument(metavar="IN", help="A LoRA file, or a folder of PEFT or diffusers.")]
LoraOut = Annotated[Path, typer.Argument(metavar="OUT", help="File to write.")]
Content = Annotated[str, typer.Option(help="full, or compact: half the size, read by qrlora only.")]
Keys = Annotated[str | None, typer.Option(help="{keys} names.", show_default="what most tools read")]

Base = Annotated[str, typer.Option(help="Base model.")]
AdaptersBase = Annotated[str, typer.Option(help="Base model.", show_default="the one the adapters were made for")]
Revision = Annotated[str, typer.Option(help="Branch, tag or commit of a base on the hub.", show_default="main")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str, typer.Option(help="dtype of the base: auto, float32, bfloat16 or float16.")]
Quantize = Annotated[str, typer.Option(help="Keep the base in fewer bits: nf4, int8 or float8.", show_default="no")]
Offload = Annotated[bool, typer.Option("--offload", help="Components of the base enter the GPU one by one.")]

SampleSteps = Annotated[int | None, typer.Option("--steps", help="Denoising steps.", show_default="the base's own")]
Guidance = Annotated[
    float | None, typer.Option(help="Classifier-free, or what a distilled base reads.", show_default="the base's own")
]
SIZE = "Pixels: a side, or WIDTHxHEIGHT."
Size = Annotated[str | None, typer.Option(help=SIZE, show_default="the base's own")]
AnyPrompt = Annotated[bool, typer.Option("--any-prompt", help="Warn, not stop, where the prompt lacks a trigger.")]
Negative = Annotated[str, typer.Option("--negative-prompt", help="What to keep out of the image.")]

Method = Annotated[str, typer.Option(help="{methods}.")]
Rank = Annotated[int | None, typer.Option(help="Directions.", show_default="the base's own")]
TrainSteps = Annotated[
    int | None, typer.Option("--steps", help="Updates of each adapter.", show_default="the base's own")
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Workers = Annotated[int, typer.Option(help="Processes.")]
Ray = Annotated[str, typer.Option(help="A Ray cluster's address, or local.", show_default="no Ray")]

ComparedMethods = Annotated[
    str,
    typer.Option(
        help="With commas between: {fusions}, peft:KIND; lora:rank=8:style/learning_rate=0.001 trains with other "
        "settings."
    ),
]
StyleWord = Annotated[str, typer.Option(help="What stands for the style in prompts: <s>, or a known word.")]
ComparisonEncoders = Annotated[
    str,
    typer.Option(
        help="dino-vits16,clip-vit-base-patch32,csd-vit-l ...", show_default="none; the first two with --pictures"
    ),
]
OwnPairs = Annotated[
    str, typer.Option(help="A CSV file of your own pairs: content,style,style_shows.", show_default="the world's")
]
Decompose = Annotated[
    bool, typer.Option("--decompose", help="Draw with each adapter by itself, too: which of the two is weak.")
]


def split_names(text: str) -> tuple[str, ...]:
    """ "qr, lora" as ("qr", "lora")."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
