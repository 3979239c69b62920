"""The commands that work on adapter files: convert, check, project. Heavy rooms are imported when one runs."""

import collections
import contextlib
import functools
import gc
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..layouts import TOOLS
from ..lora_keys import WRITTEN
from . import console, hints

if TYPE_CHECKING:
    from torch import Tensor

    from ..adapter import Adapter, Header
    from ..compat import File, Verdict

FORMS = ("full", "compact", *WRITTEN)
ENOUGH = 0.99
"""Below this share of its energy, a projected adapter is no longer the same one."""
STATES = ("loaded", "ignored", "wrong strength", "not judged")
DTYPES = ("float32", "bfloat16", "float16")

Skip = Annotated[bool, typer.Option("--skip-text-encoders", help="Leave out the layers of text encoders.")]
Input = Annotated[Path, typer.Argument(metavar="IN", help="A LoRA file, or a folder of PEFT or diffusers.")]
Output = Annotated[Path, typer.Argument(metavar="OUT", help="File to write.")]


def convert(
    source: Input,
    output: Output,
    to: Annotated[str, typer.Option(help=f"{', '.join(FORMS)}; full: what most tools read.")] = "full",
    dtype: Annotated[str, typer.Option(help="Stored numbers: float32, bfloat16 or float16.")] = "float32",
    skip_text_encoders: Skip = False,
    base: Annotated[str, typer.Option(help="The base model, for a LoRA of PEFT that starts within its weights.")] = "",
    overwrite: console.Overwrite = False,
) -> None:
    """Write a LoRA of any tool in the names of another, at the same strength.

    full and compact are contents (compact: half the size, read by qrlora only); the others are names.
    A LoRA that begins within the base's weights (pissa, olora) becomes an ordinary one with --base, at twice the rank.
    """
    from .. import files

    if to not in FORMS:
        raise ValueError(f"no form {to!r}; choose one of {', '.join(FORMS)}")
    numbers, there = _dtype(dtype), already(output)
    one_thread()
    adapter = read(source, skip_text_encoders, _weights(base) if base else None)
    content, keys = (to, None) if to not in WRITTEN else ("full", to)
    files.save(adapter, output, content=content, keys=keys, dtype=numbers, overwrite=overwrite)
    tell(output, adapter, f", {to}", there and not overwrite)


def check(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A LoRA file of any tool.")],
    tools: Annotated[
        list[str] | None,
        typer.Option("--for", help=", ".join(TOOLS), show_default="all"),
    ] = None,
) -> None:
    """Say which keys of a file a tool would load, silently ignore, or load at the wrong strength.

    The exit code is 0 if every tool that was asked for loads all at the right strength, 1 if one does not.
    """
    from .. import compat, safetensors_files
    from ..files.reading import file_in

    hints.check_kind(str(path))
    one_thread()
    found = file_in(path)
    file = compat.File(*safetensors_files.read(found), found)
    rows, causes = [], []
    remedies: dict[str, list[str]] = {}
    for tool in tools or list(compat.TOOLS):
        verdicts = compat.judge(file, tool)
        states = collections.Counter(verdict.state for verdict in verdicts)
        rows.append((tool, *(str(states[x]) for x in STATES)))
        if states["loaded"] < len(verdicts) or not verdicts:
            copy = path.with_name(f"{path.stem}-converted.safetensors")
            remedies.setdefault(_remedy(path, copy, tool), []).append(tool)
        causes += [(tool, *cause) for cause in _causes(verdicts)] + [
            (tool, "", x, "") for x in compat.notes(file, tool)
        ]
    console.table(("tool", *STATES), rows, title=f"{path}: {len(file.tensors)} keys")
    if causes:
        console.table(("tool", "keys", "why", "such as"), causes, numbers=False)
    for remedy, helped in remedies.items():
        console.say(f"{', '.join(helped)}: {remedy}")
    if remedies:
        raise typer.Exit(1)


def project(
    source: Input,
    output: Output,
    base: Annotated[str, typer.Option(help="The base model in whose basis to write it.")],
    rank: Annotated[int | None, typer.Option(help="Of the basis.", show_default="the base's own")] = None,
    side: Annotated[str, typer.Option(help="input, as method qr, or output, as qr-output.")] = "input",
    skip_text_encoders: Skip = False,
    overwrite: console.Overwrite = False,
) -> None:
    """Write a LoRA of any tool in a base's frozen basis, so that it merges with ours and the rank stays.

    What lies outside the basis is lost: the table says how much of each layer's energy was kept, the worst first.
    """
    from .. import basis as bases
    from .. import files, merging, output_files
    from ..adapter import Header
    from ..families import adapter_compatibility

    there = already(output)
    if there and not _may_be_projected(output, base, side, rank):
        output_files.check(output, overwrite)  # before the base is opened
    opened = _opened(base)
    one_thread()
    adapter = read(source, skip_text_encoders, opened.weight)
    adapter_compatibility.check(opened, adapter)
    layers = ",".join(adapter.layers)
    weights = {layer: weight for layer, weight in opened.weights(layers) if layer in adapter.layers}
    known = Header(
        family=opened.family.name,
        part=opened.family.part,
        base=opened.name,
        fingerprint=bases.fingerprint(weights.items()),
    )
    found = bases.cached_basis(weights.items(), opened.defaults.rank if rank is None else rank, side)
    projected, kept = merging.project(adapter, found, known)
    files.save(projected, output, overwrite=overwrite)
    _kept(adapter, kept, output)
    tell(output, projected, "", there and not overwrite)


COMMANDS = (
    (convert, "qrlora convert lora.safetensors for-comfyui.safetensors --to kohya"),
    (check, "qrlora check lora.safetensors --for comfyui"),
    (project, "qrlora project lora.safetensors ours.safetensors --base tiny-sdxl"),
)
"""Each with its example."""


def read(path: str | Path, skip_text_encoders: bool, weights: "Callable[[str], Tensor] | None" = None) -> "Adapter":
    """An adapter from a file; what is left out is counted aloud. Args and errors as files.load."""
    from .. import files

    hints.check_kind(str(path))
    adapter = files.load(path, skip_text_encoders, weights)
    left_out = files.count_text_encoder_keys(path) if skip_text_encoders else 0
    if left_out:
        console.say(f"{path}: {left_out} keys of text encoders left out")
    return adapter


def _weights(base: str) -> "Callable[[str], Tensor]":
    """(layer) -> its weight in a base, which is opened for the first one."""
    opened = functools.cache(lambda: _opened(base))
    return lambda layer: opened().weight(layer)


def _opened(base: str) -> Any:
    """A base of which nothing but its weights is wanted, for which a CPU is fast enough."""
    from .. import families

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", families.SlowDevice)
        return families.open_base(base, device="cpu")


def already(output: Path) -> bool:
    """Whether an adapter's file is there before it is written; that it can be is tried.

    Raises: ValueError: no name of an adapter's file.  OSError: see `outputs.check`.
    """
    from .. import output_files

    if output.suffix != ".safetensors":
        raise ValueError(f"{output}: the name must end in .safetensors")
    output_files.check(output, overwrite=True)
    return output.exists()


def _may_be_projected(path: Path, base: str, side: str, rank: int | None) -> bool:
    """Whether a file can be what `project` writes with these options."""
    from .. import files

    try:
        header = files.read_header(path)
    except ValueError:
        return False
    method = {"input": "qr", "output": "qr-output"}.get(side)
    return (header.base, header.method) == (base, method) and rank in (None, header.rank)


def tell(output: Path, adapter: "Adapter", more: str, done_before: bool) -> None:
    """The line about an adapter's file that was written, or that was there with this very content."""
    known = ", done before: the file is left as it is" if done_before else ""
    console.say(f"{output}: {len(adapter.layers)} layers, rank {adapter.rank}, {console.size(output)}{more}{known}")


def one_thread() -> None:
    """Work on files is many small products: on a busy machine, threads wait for each other far longer than they work
    (a merge of two 560-layer files, two busy cores: 10.8 s with two threads, 0.3 s with one)."""
    import torch

    torch.set_num_threads(1)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """No search for cycles of dead objects in a command that is over in seconds: what it loads lives to the end, and
    looking through it again and again takes a seventh of `inspect`."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # or Python would look through it all once more on its way out
        gc.enable()


def _dtype(name: str) -> Any:
    import torch

    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}")
    return getattr(torch, name)


def _remedy(path: Path, output: Path, tool: str) -> str:
    """The command after which a tool would load all of a file, found by trying the names that we write."""
    import torch

    from .. import compat, files
    from ..files.writing import contents

    try:
        adapter = files.load(path, skip_text_encoders=True)
    except ValueError:
        return "none: qrlora does not read this file"
    left_out = ["--skip-text-encoders"] if files.count_text_encoder_keys(path) else []
    for form in ("full", *WRITTEN):
        try:
            keys = form if form in WRITTEN else None
            file: File = compat.File(*contents(adapter.layers, adapter.header, "full", keys, torch.float32))
        except ValueError:  # names that cannot spell these layers
            continue
        if all(verdict.state == "loaded" for verdict in compat.judge(file, tool)):
            return console.command("convert", path, output, "--to", form, *left_out)
    return "none: no names under which it loads all of this adapter"


def _causes(verdicts: "list[Verdict]") -> list[tuple[str, str, str]]:
    """(how many keys, why, one of them) of what is not loaded as it should be."""
    groups: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.state != "loaded":
            strength = f" {verdict.factor:.3g} x" if verdict.state == "wrong strength" else ""
            groups.setdefault((f"{verdict.state}{strength}", verdict.reason), []).append(verdict)
    return [(f"{len(x)} {state}", reason, x[0].key) for (state, reason), x in groups.items()]


def _kept(adapter: "Adapter", kept: Mapping[str, float], output: Path) -> None:
    """The table of what a projection kept, and a warning where it is too little."""
    from ..merging import energy_kept

    total = energy_kept(adapter, kept)
    rows = [(layer, f"{share:.2%}") for layer, share in sorted(kept.items(), key=lambda item: item[1])]
    console.table(("layer", "energy kept"), [*rows, ("all", f"{total:.2%}")])
    if total < ENOUGH:
        lost = f"{1 - total:.1%} of the adapter's energy lies outside the basis and is lost"
        console.warn(f"{output}: {lost}; a higher --rank keeps more, `qrlora merge --rule stack` all")


def tell_merge(paths: Sequence[str], header: "Header") -> None:
    """A line for each adapter of a merge, what its rule lost, and whether they go together."""
    from ..merging.roles import doubts

    weights, shares = header.config["weights"], header.config["kept_energy"]
    for path, weight, share in zip(paths, weights, shares or [None] * len(paths), strict=True):
        kept = "" if share is None else f", {share:.2%} of its energy kept"
        console.say(f"{path}: strength {weight:g}{kept}")
    for doubt in doubts([header]):
        console.warn(doubt)
    if error := header.config.get("truncation_error"):
        console.warn(f"the merged update was cut to rank {header.rank}: relative error {error:.1%}")
