"""The answers that a report counts: the last of each, by those who finished, with who is left out."""

import statistics
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from .plan import Plan
from .rater_store import Study
from .sheets import Item


@dataclass(frozen=True)
class Given:
    """One answer that counts."""

    rater: int
    """1, 2 ... in the order in which they began; nothing else tells who it was."""
    item: int
    form: str
    role: str
    question: str
    pair: str
    seed: int
    first: str
    """Method of the picture, or of the first of two; "" of checks."""
    second: str
    value: int
    """0 to 5; of pairs 1: the first is better, -1: the second, 0: neither."""
    place: int
    """In the sheet, from 1."""
    flipped: bool
    seconds: float
    """From the page's being sent to the answer's arrival."""
    revisions: int
    """How often it was changed."""
    passed: bool | None
    """Of a check: whether the answer is among those that are known to be right."""


@dataclass(frozen=True)
class Person:
    """A rater, without what could tell who it was."""

    number: int
    source: str
    age: str
    experience: str
    finished: bool
    minutes: float
    failed: int
    """Checks."""
    seconds: float
    """The median of a page."""
    excluded: str
    """By which rule; "": by none."""


@dataclass(frozen=True)
class Answers:
    """Everything that a report is made of."""

    people: tuple[Person, ...]
    given: tuple[Given, ...]
    """Of all who began, without practice."""

    def counted(self, everybody: bool = False) -> list[Given]:
        """Of those who finished; of those whom no rule leaves out, or of everybody."""
        ids = {x.number for x in self.people if x.finished and (everybody or not x.excluded)}
        return [x for x in self.given if x.rater in ids]


def collect_answers(study: Study) -> Answers:
    """All answers of a rating study from its database, and a summary of each rater."""
    raters, rows = study.raters_and_answers()
    by: dict[str, dict[tuple[int, str], list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by[row["rater"]][row["item"], row["question"]].append(row)
    people, given = [], []
    for number, rater in enumerate(raters, 1):
        entries = study.sheets[rater["sheet"]]
        places = {entry.item: (k, entry.flipped) for k, entry in enumerate(entries, 1)}
        mine = []
        for (item_id, question), versions in by[rater["id"]].items():
            item, last = study.items[item_id], max(versions, key=lambda x: x["revision"])
            if item.role != "practice" and item_id in places:
                place, flipped = places[item_id]
                seconds = (versions[0]["answered"] - versions[0]["shown"]) / 1000
                told = _item_of_answer(study, item) | {"question": question, "value": last["value"], "passed": None}
                if expected := next((x for x in item.expected if x[0] == question), None):
                    told["passed"] = expected[1] <= last["value"] <= expected[2]
                told |= {"place": place, "flipped": flipped, "seconds": seconds, "revisions": len(versions) - 1}
                mine.append(Given(rater=number, item=item_id, **told))
        mine.sort(key=lambda x: x.place)
        given += mine
        people.append(_summary_of_rater(study.plan, number, rater, mine))
    return Answers(tuple(people), tuple(given))


def _item_of_answer(study: Study, item: Item) -> dict[str, Any]:
    """The item of an answer: what the random names of its images stand for."""
    first, second = study.pictures[item.left], study.pictures.get(item.right)
    methods = {"first": first.method, "second": second.method if second else ""}
    return {"form": item.form, "role": item.role, "pair": item.pair, "seed": first.seed, **methods}


def _summary_of_rater(plan: Plan, number: int, rater: dict[str, Any], mine: Sequence[Given]) -> Person:
    """A rater's summary, and the rule by which the answers are not counted, if any."""
    failed = len({x.item for x in mine if x.passed is False})
    seconds = statistics.median([x.seconds for x in mine]) if mine else 0.0
    rules = {
        "checks": bool(plan.failed_checks) and failed >= plan.failed_checks,
        "too fast": seconds < plan.least_seconds,
    }
    ended = rater["finished"]
    return Person(
        number,
        rater["source"],
        rater["age"] or "",
        rater["experience"] or "",
        ended is not None,
        (ended - rater["consented"]) / 60_000 if ended else 0.0,
        failed,
        seconds,
        next((name for name, holds in rules.items() if holds and mine), ""),
    )


def values(given: Collection[Given], form: str, question: str, role: str = "rating") -> list[Given]:
    """The answers to one question of one form."""
    return [x for x in given if (x.form, x.question, x.role) == (form, question, role)]
