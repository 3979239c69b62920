"""Which of two adapters is the weak one, in a sentence: of two files, and of each method of a comparison."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .decomposition import BASE_ALONE, CONTENT_ALONE, STYLE_ALONE
from .known_word_scale import ROLES

CLEAR = 0.2
"""Scores, 0..1, that differ by less are too close, however sure they are."""
HALF_WIDTH_OF_ONE_PAIR = 0.5
"""Of an accuracy whose variation over pairs is not known."""
ALONE = {"content": CONTENT_ALONE, "style": STYLE_ALONE}
"""Role -> the part in which its adapter alone meets known words of the other role."""
COMES_OUT: dict[str, str] = {
    "content": "the content comes out in known styles",
    "style": "the style comes out on known things",
}


def needed_difference(*uncertainties: float) -> float:
    """The difference of two scores from which on one adapter is called the weak one.

    Args: uncertainties: half widths of 95 % intervals of either score, from sources that are independent.
    """
    return max(CLEAR, math.hypot(*uncertainties))


def weak_role(scores: Mapping[str, float], needed: float) -> str | None:
    """The role of the adapter that is weak; None: too close to say."""
    weak, strong = sorted(ROLES, key=lambda role: scores[role])
    return weak if scores[strong] - scores[weak] >= needed else None


def verdict(scores: Mapping[str, float], needed: float, without: Mapping[str, float] | None = None) -> str:
    """A sentence that names the weak adapter, or says that none can be named, with the numbers.

    Args: scores: how far what each adapter learnt comes out with that adapter alone, 0..1.
          needed: of `needed_difference`.  without: the same of the same prompts without the adapters, if it is known.
    """
    weak = weak_role(scores, needed)
    said = {role: f"{text} at {scores[role]:.2f}" for role, text in COMES_OUT.items()}
    if without is not None:
        said = {role: f"{text} ({without[role]:.2f} without its adapter)" for role, text in said.items()}
    if weak is None:
        numbers = f"{said['style']}, {said['content']}"
        told = f"they would have to differ by {needed:.2f}"
        if needed > 1:  # of scores that end at 1
            told = "the known words' own drawings differ too much for any two scores to tell"
        return f"Too close to say which adapter is weak: {numbers}; {told}."
    strong = next(role for role in ROLES if role != weak)
    return f"The {weak} adapter is the weak one: {said[weak]}, {said[strong]}."


def verdicts_of_methods(parts: Sequence[Mapping[str, Any]], spread: Mapping[str, float]) -> dict[str, str]:
    """{method: which of its adapters is weak} of the methods of a comparison that train both.

    With ground truth a role's score is the classifiers' accuracy as a share of what the base reaches with known words;
    without, how far it comes out by the encoders.

    Args: parts: of `SummaryTables`.  spread: role -> `KnownWordScale.spread`; {} with ground truth.
    """
    rows = {(row["method"], row["part"], row["score"]): row for row in parts}
    found = {}
    for method in dict.fromkeys(row["method"] for row in parts):
        for names in ({role: role for role in ROLES}, {role: comes_out(role) for role in ROLES}):
            alone = [rows.get((method, ALONE[role], names[role])) for role in ROLES]
            known = [rows.get(("none", BASE_ALONE, names[role])) for role in ROLES]
            if None not in (*alone, *known):
                reached = [row["value"] if row and row["score"] in ROLES else 1.0 for row in known]
                found[method] = _verdict_of_method(alone, reached, spread)
    return found


def comes_out(role: str) -> str:
    """The name of a role's score without ground truth, see `known_word_scale`."""
    return f"{role}_comes_out"


def _verdict_of_method(alone: Sequence[Any], known: Sequence[float], spread: Mapping[str, float]) -> str:
    """The verdict on a method's adapters. Args: alone, known: of each role its estimate and what known words reach."""
    if not min(known):
        return "Which adapter is weak cannot be said: the classifiers do not recognise what the base itself knows."
    scores = {role: min(row["value"] / x, 1.0) for role, row, x in zip(ROLES, alone, known, strict=True)}
    widths = [(row["value: high"] - row["value: low"]) / 2 / x for row, x in zip(alone, known, strict=True)]
    of_one_pair = 0.0 if spread else HALF_WIDTH_OF_ONE_PAIR
    widths = [of_one_pair if math.isnan(x) else x for x in widths]
    return verdict(scores, needed_difference(*widths, *(2 * x for x in spread.values())))
