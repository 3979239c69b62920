"""Settings as plain values: type checks by a config's annotations, values parsed from text, values for JSON."""

import dataclasses
import difflib
import json
import operator
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
    """Check settings against the fields of a dataclass and their annotations.

    Raises: ValueError: an unknown name, with the nearest known one; a value of a wrong type.
    """
    hints = typing.get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(hints)}"
            raise ValueError(f"no setting {name!r}; {hint}")
        if not _has_type(value, hints[name]):
            raise ValueError(f"{name} must be {_describe_type(hints[name])}, got {value!r}")


def _has_type(value: Any, hint: Any) -> bool:
    """Whether a setting's value has the type of its annotation."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_has_type(value, h) for h in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, (list, tuple)) and all(_has_type(v, arguments[0]) for v in value)
    if hint is float:  # nan, which is not itself, is nobody's setting; bool is an int to Python
        return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def _describe_type(hint: Any) -> str:
    """A setting's type in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_describe_type(h) for h in arguments if h not in (type(None), Path))
    if origin is Literal:
        return "one of " + ", ".join(x or '""' for x in arguments)
    if origin is tuple:
        return "a list, each " + _describe_type(arguments[0])
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(hint, str(hint))


def parse_override(kind: type, name: str, text: str) -> Any:
    """The value of an override `name=text`, in its field's type; an unknown name is left to `check_types`."""
    hint = typing.get_type_hints(kind).get(name)
    options = {hint, *typing.get_args(hint)} if typing.get_origin(hint) is not tuple else {hint}
    verbatim = str in options or typing.get_origin(hint) is Literal
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    fits = isinstance(value, str) or isinstance(value, list) and holds_list(kind, name)
    return value if fits or not verbatim else text


def holds_list(kind: type, name: str) -> bool:
    """Whether a field takes one value or a list of them."""
    hint = typing.get_type_hints(kind).get(name)
    return any(typing.get_origin(option) is tuple for option in typing.get_args(hint))


def check_instance(name: str, value: Any, kind: type, hint: str = "") -> None:
    """Raises ValueError: an argument of another class, with a hint at how one is had."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be of class {kind.__name__}, got {value!r:.60}{hint and f'; {hint}'}")


ADAPTER_HINT = "qrlora.load reads one from its file"


def whole_number(name: str, value: Any) -> int:
    """An argument as a whole number, of any library's kind. Raises ValueError: it is none."""
    try:
        return operator.index(value)
    except TypeError as error:
        raise ValueError(f"{name} must be a whole number, got {value!r:.80}") from error


MAX_COUNT = 10**9
"""More updates, steps or images than this is a typing error: libraries fail at such numbers in their own ways."""
MAX_SEED = 2**63 - 1
"""Seeds beyond it are none of torch's."""


def check_at_least(config: Any, name: str, low: float, high: float = MAX_COUNT) -> None:
    """Raises ValueError: a setting's value below `low` or above `high`. None, a setting that is left open, passes."""
    value = getattr(config, name)
    if value is not None and not low <= value:
        raise ValueError(f"{name} must be {low} or more, got {value}")
    if value is not None and not value <= high:
        raise ValueError(f"{name} must be {high} or less, got {str(value):.30}")


MAX_STRENGTH = 1000.0
"""An adapter's strength beyond this, of either sign, is a typing error: images are noise from about 10 on."""


def check_strengths(values: Iterable[float], what: str = "strengths") -> None:
    """Raises ValueError: settings that are strengths hold NaN, infinity, or numbers beyond MAX_STRENGTH. Negative
    strengths subtract."""
    given = list(values)
    wrong = f"{what} must be finite numbers of at most {MAX_STRENGTH:g} in size, got {str(given):.200}"
    try:
        numbers = [float(x) for x in given]
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(wrong) from error
    if not all(abs(x) <= MAX_STRENGTH for x in numbers):  # NaN compares as false
        raise ValueError(wrong)
