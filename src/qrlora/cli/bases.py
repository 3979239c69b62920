"""`qrlora bases`: the built-in base models with their own settings, and what else can be a base."""

from pathlib import Path

from . import console, tables

EXAMPLE = "qrlora bases"


def bases() -> None:
    """List the base models that are built in, and what else can be one."""
    from ..built_in_bases import SEPARATE, built_in_bases, installation_hint
    from ..families import FAMILIES

    folders = list(built_in_bases().values())
    columns = ("built in", "family", "size", "pixels", "rank", "steps", "about")
    if folders:
        tables.print_table(columns, [base_row(folder) for folder in folders], numbers=False)
    for hint in filter(None, map(installation_hint, SEPARATE)):
        console.say(hint)
    console.say("Any of these can be a base too: a hub name, a diffusers folder, one .safetensors checkpoint.")
    rows = [(name, x.layout.variants[x.layout.example].hub, ", ".join(x.targets)) for name, x in FAMILIES.items()]
    tables.print_table(("family", "such as", "targets"), rows, numbers=False)
    console.say("Where a base has no settings of its own, the paper's are taken.")


def base_row(folder: Path) -> tuple[str, ...]:
    """A built-in base's folder as a row: family, size, its default resolution, rank and steps."""
    from ..families import FAMILIES, read_json

    index = read_json(folder / "model_index.json")
    kind = index.get("_class_name")
    family = next((x for x in FAMILIES.values() if kind in (x.pipeline, *x.compatible_pipelines)), None)
    path = folder / "qrlora.json"
    own = read_json(path) if path.is_file() else {}
    defaults = family.defaults.with_base_defaults(own.get("defaults", {})) if family else None
    megabytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    sizes = (str(x) for x in (defaults.resolution, defaults.rank, defaults.steps)) if defaults else ("", "", "")
    return folder.name, family.name if family else "unknown", f"{megabytes:.1f} MB", *sizes, own.get("about", "")
