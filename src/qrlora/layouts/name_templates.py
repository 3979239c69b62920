"""Names with numbers in them, as rows of a table: "blocks.#.proj" stands for "blocks.0.proj", "blocks.1.proj" ...

A row may hold numbers of its own, which then are wanted: "blocks.#.to_out.0".
"""

import re
from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")
NUMBER = re.compile(r"(?<![^._])(?:[0-9]+|#)(?![^._])")
"""A number that is a whole part of a name, between dots or underscores."""


class Templates(Generic[T]):
    """{template: value}, to be asked for a name."""

    def __init__(self, rows: Iterable[tuple[str, T]]) -> None:
        self._rows: dict[str, dict[tuple[str, ...], T]] = {}
        for template, value in rows:
            self._rows.setdefault(NUMBER.sub("#", template), {}).setdefault(tuple(NUMBER.findall(template)), value)

    def find(self, name: str) -> tuple[T, list[str]] | None:
        """The value of the name template that a name is of, and the numbers in the places of its "#"; None: of none."""
        numbers = NUMBER.findall(name)
        for wanted, value in self._rows.get(NUMBER.sub("#", name), {}).items() if "#" not in name else ():
            pairs = list(zip(wanted, numbers, strict=True))
            if all(want in ("#", number) for want, number in pairs):
                return value, [number for want, number in pairs if want == "#"]
        return None


def filled(template: str, numbers: Iterable[str]) -> str:
    """The name that a template stands for with these numbers."""
    following = iter(numbers)
    return NUMBER.sub(lambda found: next(following) if found[0] == "#" else found[0], template)
