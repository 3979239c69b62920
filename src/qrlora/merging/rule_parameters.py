"""Parameters of merging rules: the keyword-only arguments of a rule's function, checked by name, type and range."""

import inspect
import math
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

KINDS = {float: "a number", int: "a whole number"}
"""Annotation of a parameter -> what it is called."""


def rule_parameters(rule: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """{name: parameter} of a rule's function, those after the `*` in its signature."""
    parameters = inspect.signature(rule).parameters
    return {name: p for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def describe(name: str, rule: Callable[..., Any]) -> str:
    """A rule with its parameters and their defaults: "dare (drop=0.9, seed=0)"."""
    listed = ", ".join(f"{x}={p.default:g}" for x, p in rule_parameters(rule).items())
    return f"{name} ({listed})" if listed else name


def check_parameters(name: str, rule: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Refuse parameters that a rule's signature does not have or allow; ranges are the rule's own affair.

    Raises: ValueError: an unknown name or a wrong type, with the rule's list.
    """
    known, hints = rule_parameters(rule), typing.get_type_hints(rule)
    listed = ", ".join(f"{x} ({KINDS[hints[x]]}, {p.default:g} by default)" for x, p in known.items())
    takes = f"rule {name!r} takes {listed or 'no parameters'}"
    for parameter, value in values.items():
        if parameter not in known:
            raise ValueError(f"no parameter {parameter!r}; {takes}")
        allowed = (int, float) if hints[parameter] is float else hints[parameter]
        if not isinstance(value, allowed) or isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"{parameter} must be {KINDS[hints[parameter]]}, got {value!r}; {takes}")


def parse_parameters(name: str, rule: Callable[..., Any], words: Iterable[str]) -> dict[str, Any]:
    """Parse a merging rule's parameters: ["density=0.3"] as {"density": 0.3}.

    Raises: ValueError: a word that is not NAME=VALUE, or as `check_parameters`.
    """
    hints, values = typing.get_type_hints(rule), {}
    for word in words:
        parameter, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"a parameter of a rule reads NAME=VALUE, got {word!r}")
        values[parameter.strip()] = _parse_number(text.strip(), hints.get(parameter.strip()))
    check_parameters(name, rule, values)
    return values


def _parse_number(text: str, kind: Any) -> Any:
    """A parameter's text as a number of a kind; the text itself if it is none."""
    try:
        return kind(text) if kind in KINDS else text
    except ValueError:
        return text
