"""`qrlora project`: a LoRA of any tool written in a base's frozen basis."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import adapter_files, arguments, console, options, process_settings, tables
from .progress_bar import progress_bar

if TYPE_CHECKING:
    from ..adapter import Adapter

EXAMPLE = "qrlora project lora.safetensors ours.safetensors --base tiny-sdxl"


def project(
    source: options.LoraIn,
    output: options.LoraOut,
    base: Annotated[str, typer.Option(help="The base model in whose basis to write it.")],
    rank: Annotated[int | None, typer.Option(help="Of the basis.", show_default="the base's own")] = None,
    side: Annotated[str, typer.Option(help="input, as method qr, or output, as qr-output.")] = "input",
    skip_text_encoders: options.SkipTextEncoders = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Write a LoRA of any tool in a base's frozen basis, so that it merges with ours and the rank stays.

    What lies outside the basis is lost: the table says which fraction of each layer's squared norm was kept, the worst
    first.
    """
    from .. import basis as bases
    from .. import files, merging, output_files
    from ..adapter import Header
    from ..families import adapter_compatibility

    arguments.check_basis_options(rank, side)
    existed = adapter_files.check_output(output)
    if existed and not can_be_projected_file(output, base, side, rank):
        output_files.check_writable(output, overwrite)  # before the base is opened
    open_base = functools.cache(adapter_files.open_base_for_weights)
    adapter = adapter_files.read_adapter(source, skip_text_encoders, lambda layer: open_base(base).weight(layer))
    opened = open_base(base)
    with progress_bar("projecting", transient=True) as bar:
        process_settings.use_one_thread()
        adapter_compatibility.check_adapter_fits_base(opened, adapter)
        layers = ",".join(adapter.layers)
        weights = {layer: weight for layer, weight in opened.weights(layers) if layer in adapter.layers}
        header = Header(
            family=opened.family.name,
            component=opened.family.component,
            base=opened.name,
            fingerprint=bases.fingerprint(weights.items()),
        )
        bar.stage("finding the leading directions")
        basis = bases.cached_basis(weights.items(), opened.defaults.rank if rank is None else rank, side)
        bar.stage("projecting every layer")
        projected, kept = merging.project(adapter, basis, header)
    files.save(projected, output, overwrite=overwrite)
    report_kept(adapter, kept, output)
    adapter_files.report_written(output, projected, "", existed and not overwrite)


def can_be_projected_file(path: Path, base: str, side: str, rank: int | None) -> bool:
    """Whether a file can be what `project` writes with these options."""
    from .. import files

    try:
        header = files.read_header(path)
    except ValueError:
        return False
    method = {"input": "qr", "output": "qr-output"}.get(side)
    return (header.base, header.method) == (base, method) and rank in (None, header.rank)


def report_kept(adapter: "Adapter", kept: Mapping[str, float], output: Path) -> None:
    """Print the table of what a projection kept of each layer, and a warning where it is too little."""
    from ..merging.sum_and_stack import MIN_KEPT_FRACTION, kept_fraction_of_update

    total = kept_fraction_of_update(adapter, kept)
    rows = [(layer, f"{share:.2%}") for layer, share in sorted(kept.items(), key=lambda item: item[1])]
    tables.print_table(("layer", "squared norm kept"), [*rows, ("all", f"{total:.2%}")])
    if total < MIN_KEPT_FRACTION:
        lost = f"{1 - total:.1%} of the adapter's squared norm lies outside the basis and is lost"
        console.warn(f"{output}: {lost}; a higher --rank keeps more, `qrlora merge --rule stack` all")
