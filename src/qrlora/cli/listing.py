"""What `qrlora bases` shows."""

from pathlib import Path

from ..built_in_bases import SEPARATE, built_in_bases, installation_hint
from ..families import FAMILIES, read_json
from . import console


def bases() -> None:
    """Print the built-in bases with their own settings, and what else can be a base."""
    folders = list(built_in_bases().values())
    columns = ("built in", "family", "size", "pixels", "rank", "steps", "about")
    if folders:
        console.table(columns, [_row(folder) for folder in folders], numbers=False)
    for hint in filter(None, map(installation_hint, SEPARATE)):
        console.say(hint)
    console.say("Any of these can be a base too: a hub name, a diffusers folder, one .safetensors checkpoint.")
    rows = [(name, x.layout.variants[x.layout.example].hub, ", ".join(x.targets)) for name, x in FAMILIES.items()]
    console.table(("family", "such as", "targets"), rows, numbers=False)
    console.say("Where a base has no settings of its own, the paper's are taken.")


def _row(folder: Path) -> tuple[str, ...]:
    index = read_json(folder / "model_index.json")
    family = next((x for x in FAMILIES.values() if index.get("_class_name") in (x.pipeline, *x.same_parts)), None)
    path = folder / "qrlora.json"
    own = read_json(path) if path.is_file() else {}
    defaults = family.defaults.with_base_defaults(own.get("defaults", {})) if family else None
    megabytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    told = (str(x) for x in (defaults.resolution, defaults.rank, defaults.steps)) if defaults else ("", "", "")
    return folder.name, family.name if family else "unknown", f"{megabytes:.1f} MB", *told, own.get("about", "")
