"""What a tool does with each key of a file, by the rows of layouts and their quirks."""

from os import PathLike

from .. import safetensors_files
from ..files.load_adapter import file_in
from ..layouts import TOOLS, Reader
from ..lora_keys import is_text_encoder
from .checked_file import CheckedFile, Verdict
from .loader_rules import EVERY_FILE, QUIRKS, STRENGTHS, TEXT_ENCODERS

UNKNOWN = "of a model whose names qrlora does not know"


def check(path: str | PathLike, tool: str) -> list[Verdict]:
    """What a tool does with each key of a file, in the file's order.

    Raises: ValueError: no such tool; a file that no tool can load, as files.load says.  OSError: missing.
    """
    path = file_in(path)
    try:
        return key_verdicts(CheckedFile(*safetensors_files.read_safetensors(path), path), tool)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def key_verdicts(file: CheckedFile, tool: str) -> list[Verdict]:
    """What a tool does with each key of an open file: `check` without reading."""
    if tool not in TOOLS:
        raise ValueError(f"no rules for {tool!r}; known tools: {', '.join(TOOLS)}")
    file.refuse_unsound()
    row = file.layout.tools.get(tool) if file.layout else None
    refusal = _whole_file_refusal(file, tool, row)
    return [_key_verdict(file, tool, row, refusal, key) for key in file.tensors]


def tool_notes(file: CheckedFile, tool: str) -> list[str]:
    """What else a person should know about a file in a tool, beside the verdicts on its keys."""
    version = file.metadata.get("ss_base_model_version", "")
    if tool == "kohya" and file.layout and "sgm" in file.layout.written:
        if any(key.spelling == "lora_unet_{diffusers}" for key in file.keys.values()):
            script = f"{file.layout.family}_merge_lora.py"
            return [f"its trainers and generators translate these names, {script} knows sgm names alone: --keys sgm"]
    if tool in ("a1111", "forge") and file.layout and not version.startswith(file.layout.gallery):
        wanted = f"its ss_base_model_version is not {file.layout.gallery}..."
        return [f"its gallery takes the file for another model's: {wanted}"]
    return []


def _whole_file_refusal(file: CheckedFile, tool: str, row: Reader | None) -> str:
    """Why a tool loads nothing of a file at all; "" where it loads something, or nobody knows."""
    kinds = {key.factor.kind for key in file.keys.values()}
    if kinds and not kinds & {"A", "B"}:
        return "no tool knows these names, qrlora and its authors' code aside"
    if row is None:
        return f"it has no {file.layout.family} models" if file.layout else ""
    reasons = [reason for word in row.quirks if (reason := QUIRKS[word].refuses(file))]
    unknown = sum(not _lora_key_verdict(file, tool, row, key).factor for key in file.keys) if tool in EVERY_FILE else 0
    if unknown > EVERY_FILE.get(tool, 0):
        many = f"{unknown} keys that it does not know, above {EVERY_FILE[tool]}"
        reasons.append(f"{many}: it takes the file for another model's")
    return next(iter(reasons), "")


def _key_verdict(file: CheckedFile, tool: str, row: Reader | None, refusal: str, key: str) -> Verdict:
    """The verdict of a tool on one key of a file."""
    if refusal:
        return Verdict(key, 0.0, refusal)
    if is_text_encoder(key):
        named = TEXT_ENCODERS[tool] if row is None or row.text_encoders is None else row.text_encoders
        why = "" if key.startswith(named) else "a text encoder under names it does not know"
        quirks = (QUIRKS[word].ignores_text_encoder for word in (row.quirks if row else ()))
        reason = why or next((reason for quirk in quirks if (reason := quirk(file, key))), "")
        return Verdict(key, float(not reason), reason)
    if key not in file.keys:
        return Verdict(key, None, "no plain LoRA's; qrlora does not know what the tool does with it")
    return _lora_key_verdict(file, tool, row, key) if row else Verdict(key, None, UNKNOWN)


def _lora_key_verdict(file: CheckedFile, tool: str, row: Reader, key: str) -> Verdict:
    """The verdict on a key that is a UNet's or transformer's, of a known family."""
    meaning = file.keys[key]
    name = meaning.factor.name
    if meaning.spelling in row.spellings or _spelling_of_other_kind(file, key) in row.spellings:
        reason = next((why for word in row.quirks if (why := QUIRKS[word].ignores(file, key))), "")
        reason = reason or ("" if name in file.ranks else "holds no pair A, B")
    else:
        known = " and ".join(map(readable_spelling, row.spellings))
        reason = f"it does not know names such as {readable_spelling(meaning.spelling)}, only {known}"
    if reason:
        return Verdict(key, 0.0, reason)
    strength = STRENGTHS.get(tool, CheckedFile.by_alpha)(file, name)
    factor = strength / file.right[name] if file.right[name] else 1.0
    return Verdict(key, factor, "" if abs(factor - 1) < 1e-3 else "alpha is read differently from what the file means")


def _spelling_of_other_kind(file: CheckedFile, key: str) -> str:
    """The spelling of a key whose layer has one name in the original model and in diffusers, taken for the other kind;
    "" where it has two names."""
    spelling, (first, *others) = file.keys[key].spelling, file.keys[key].layers
    if others or file.layout is None or not file.layout.has_one_name(first):
        return ""
    prefix, _, kind = spelling.partition("{")
    return prefix + {"original}": "{diffusers}", "diffusers}": "{original}"}.get(kind, "{" + kind)


def readable_spelling(spelling: str) -> str:
    """The spelling of a key in a verdict as a person reads it: "transformer. with diffusers' names"."""
    prefix, _, kind = spelling.rstrip("}").partition("{")
    kind = {"processor": "diffusers' oldest names", "diffusers": "diffusers' names", "original": "original names"}.get(
        kind, "names of its own"
    )
    return f"{prefix} with {kind}" if prefix else f"bare {kind}"
