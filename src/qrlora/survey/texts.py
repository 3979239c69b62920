"""What raters read, one file a language in texts/, and the questions that a new plan begins with."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .plan import FORMS, Question

FOLDER = Path(__file__).parent / "texts"


def languages() -> list[str]:
    """Those that there are."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def texts(language: str) -> dict[str, Any]:
    """Every text of the raters' pages in a language. Raises: ValueError: there is no such."""
    if language not in languages():
        raise ValueError(f"no texts in {language!r}, but in {', '.join(languages())}")
    return tomllib.loads((FOLDER / f"{language}.toml").read_text(encoding="utf-8"))


def questions(language: str, forms: Sequence[str]) -> tuple[Question, ...]:
    """The questions of a language in some forms. Raises: ValueError: no such form."""
    if wrong := [form for form in forms if form not in FORMS]:
        raise ValueError(f"no form {wrong[0]!r}: there are {', '.join(FORMS)}")
    told = texts(language)["questions"]
    return tuple(Question(q["name"], q["form"], q["text"], tuple(q["words"])) for q in told if q["form"] in forms)
