"""Settings as plain values: which values a config's annotations allow, read from text, written for JSON."""

import dataclasses
import difflib
import json
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal


def as_dict(config: Any) -> dict[str, Any]:
    """A config as plain values that JSON and TOML can hold: paths become strings, tuples become lists."""
    return json.loads(json.dumps({f.name: getattr(config, f.name) for f in dataclasses.fields(config)}, default=str))


def check_types(kind: type, values: Mapping[str, Any]) -> None:
    """Refuse names that `kind` does not have and values that its annotations do not allow, with a ValueError."""
    hints = typing.get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1, cutoff=0.5)
            way_out = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(hints)}"
            raise ValueError(f"no setting {name!r}; {way_out}")
        if not _fits(value, hints[name]):
            raise ValueError(f"{name} must be {_described(hints[name])}, got {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, h) for h in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, (list, tuple)) and all(_fits(v, arguments[0]) for v in value)
    if hint is float:  # nan is nobody's setting; bool is an int to Python
        return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def _described(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_described(h) for h in arguments if h not in (type(None), Path))
    if origin is Literal:
        return "one of " + ", ".join(x or '""' for x in arguments)
    if origin is tuple:
        return "a list, each " + _described(arguments[0])
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(hint, str(hint))


def parsed(kind: type, name: str, text: str) -> Any:
    """An override's text as a value of its field's type; a name that is unknown is left to `check_types`."""
    hint = typing.get_type_hints(kind).get(name)
    options = {hint, *typing.get_args(hint)} if typing.get_origin(hint) is not tuple else {hint}
    verbatim = str in options or typing.get_origin(hint) is Literal
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, str) or not verbatim else text


def at_least(config: Any, name: str, low: float) -> None:
    """Refuse a value below `low`, or infinity, with a ValueError; None is not chosen yet."""
    value = getattr(config, name)
    if value is not None and not low <= value < math.inf:
        raise ValueError(f"{name} must be {low} or more, got {value}")


STRONGEST = 1000.0
"""Beyond this, of either sign, an adapter's strength is a slip: pictures are noise from some 10 on."""


def check_strengths(values: Iterable[float], what: str = "strengths") -> None:
    """Raises ValueError: NaN, infinity, or larger than STRONGEST. Negative ones take an adapter's effect away."""
    found = [float(x) for x in values]
    if not all(abs(x) <= STRONGEST for x in found):  # NaN compares as false
        raise ValueError(f"{what} must be finite numbers of at most {STRONGEST:g} in size, got {found}")
