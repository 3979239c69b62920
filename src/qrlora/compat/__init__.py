"""Which keys of a file a tool would load, which it would pass over, and which it would load at the wrong strength."""

from os import PathLike

from .. import storage
from ..files.reading import file_in
from ..keys import is_text_encoder
from .rules import TEXT_ENCODERS, TOOLS
from .seen import File, Rule, Verdict, of_lora

__all__ = ["TOOLS", "File", "Rule", "Verdict", "check", "judge", "notes"]


def check(path: str | PathLike, tool: str) -> list[Verdict]:
    """What a tool does with each key of a file, in the file's order.

    Raises: ValueError: no such tool; a file that no tool can load, as files.load says.  OSError: missing.
    """
    path = file_in(path)
    try:
        return judge(File(*storage.read(path), path), tool)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def judge(file: File, tool: str) -> list[Verdict]:
    """`check` of a file's contents."""
    if tool not in TOOLS:
        raise ValueError(f"no rules for {tool!r}; known tools: {', '.join(TOOLS)}")
    file.refuse_unsound()
    rule = TOOLS[tool].get(file.family)
    refusal = rule.refuses(file) if rule else f"it has no {file.family or 'such'} models"
    verdicts = []
    for key in file.tensors:
        if refusal or rule is None:
            verdicts.append(Verdict(key, 0.0, refusal))
        elif is_text_encoder(key):
            known = key.startswith(TEXT_ENCODERS[tool])
            verdicts.append(Verdict(key, float(known), "" if known else "a text encoder under names it does not know"))
        elif key not in file.keys:
            verdicts.append(Verdict(key, None, "no plain LoRA's; qrlora does not know what the tool does with it"))
        else:
            verdicts.append(of_lora(file, rule, key))
    return verdicts


def notes(file: File, tool: str) -> list[str]:
    """What else a person should know about the file in this tool."""
    version = file.metadata.get("ss_base_model_version", "")
    if tool in ("a1111", "forge") and file.part == "unet" and not version.startswith("sdxl_"):
        return ["its gallery takes the file for another model's: the metadata's ss_base_model_version is not sdxl_..."]
    return []
