"""The plan of a rating study: all that is decided before the first answer, in one TOML file that people read and edit.

Its SHA-256 is stored with the study when the first rater begins, and in every report.
"""

import csv
import dataclasses
import hashlib
import io
import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..text_files import read_text, write_text

FORMS = ("levels", "pairs")
LEVELS = 6
"""0 to 5, as in the paper (D.2)."""
PLAN, TABLE, PICTURES = "plan.toml", "pictures.csv", "pictures"
KINDS = ("result", "content", "style", "truth", "noise")
COLUMNS = ("file", "kind", "method", "pair", "seed", "sha256")


@dataclass(frozen=True)
class Question:
    """What is asked about a picture, or about two."""

    name: str
    form: str
    text: str
    words: tuple[str, ...]
    """Of levels: what 0 to 5 mean; of pairs: the first, the second, neither."""


@dataclass(frozen=True)
class Picture:
    """A picture of the study under its random name."""

    file: str
    kind: str
    method: str
    pair: str
    seed: int
    sha256: str
    scores: dict[str, float] = field(default_factory=dict)
    """What machines said of it, where it comes from `qrlora compare`."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Settings of a study. In the file each has its meaning beside it: `TEMPLATE`."""

    title: str
    about: str
    contact: str
    language: str
    seed: int
    methods: tuple[str, ...]
    pictures_sha256: str
    inputs: int
    comparisons: int
    checks: int
    repeats: int
    raters: int
    sheets: int
    failed_checks: int
    least_seconds: float
    effect: float
    win_rate: float
    power: tuple[dict[str, Any], ...] = ()
    questions: tuple[Question, ...]
    text: str = field(default="", repr=False, compare=False)
    """The file."""

    def __post_init__(self) -> None:
        """Check the numbers and questions of a plan."""
        for name in ("checks", "repeats", "inputs", "comparisons", "failed_checks"):
            if getattr(self, name) < 0:
                raise ValueError(f"{PLAN}: {name} must be 0 or more, got {getattr(self, name)}")
        if self.raters < 2 or self.sheets < self.raters:
            raise ValueError(
                f"{PLAN}: a study needs 2 raters or more and a sheet for each, got {self.raters}, {self.sheets}"
            )
        if not self.questions or len({q.name for q in self.questions}) != len(self.questions):
            raise ValueError(f"{PLAN}: a study needs questions, each of another name")
        for q in self.questions:
            wanted = {"levels": LEVELS, "pairs": 3}.get(q.form)
            if wanted is None or len(q.words) != wanted:
                raise ValueError(
                    f"{PLAN}: question {q.name!r} has form {q.form!r} and {len(q.words)} words; levels have {LEVELS}, "
                    "pairs 3"
                )
            if not self.asked_for(q.form):
                raise ValueError(
                    f"{PLAN}: the question {q.name!r} is never asked: raise inputs or comparisons, or remove it"
                )

    def asked_for(self, form: str) -> int:
        """How many inputs (levels) or comparisons (pairs) a sheet has."""
        return self.inputs if form == "levels" else self.comparisons

    def of(self, form: str) -> tuple[Question, ...]:
        """The questions of a form, in order."""
        return tuple(q for q in self.questions if q.form == form)

    @property
    def forms(self) -> tuple[str, ...]:
        """What is asked: levels, pairs."""
        return tuple(form for form in FORMS if self.of(form))

    @cached_property
    def sha256(self) -> str:
        """Of the file, which names the pictures by theirs."""
        return hashlib.sha256(self.text.encode()).hexdigest()


TEMPLATE = """\
# The plan of a rating study. Edit it before the first rater begins; from then on it is fixed: its SHA-256 is stored
# with the answers and printed in the report. Lines that begin with # are explanations.

title = {title}
# What raters are told about the purpose, and whom they can write to.
about = {about}
contact = {contact}
# Of the pages: the name of a file in qrlora/survey/texts.
language = {language}
# Of the sheets: which pictures each rater sees, in which order, on which side.
seed = {seed}
methods = {methods}
# Of pictures.csv, which holds the SHA-256 of every picture.
pictures_sha256 = {pictures_sha256}

# --- A rater's sheet ---
# Inputs (a content and a style picture) of which every method's result is rated by levels.
inputs = {inputs}
# Paired comparisons; every two methods meet equally often.
comparisons = {comparisons}
# Of each form: items with a known answer (a noise picture, the wrong content), and items that come twice.
checks = {checks}
repeats = {repeats}

# --- Stopping rule: nobody new begins once this many raters have finished; nobody looks at results before ---
raters = {raters}
# Sheets that are made beforehand; more than raters, because some will not finish.
sheets = {sheets}

# --- Exclusions: a rater is left out who fails this many checks or more, or whose median item took less time; the
# --- report gives every result with and without them. 0: no such rule.
failed_checks = {failed_checks}
least_seconds = {least_seconds}

# --- What the study should be able to see: a difference in levels, a share of wins. The power below (the chance that
# --- the 95 % interval leaves out "no difference") was simulated by `new` on the sheets that it planned.
effect = {effect}
win_rate = {win_rate}
"""


def write_plan(plan: Plan, folder: Path) -> Plan:
    """Write plan.toml; returns the plan as it is read back. Raises: OSError."""
    flat = {f.name: getattr(plan, f.name) for f in dataclasses.fields(plan)}
    text = TEMPLATE.format(**{name: _toml(value) for name, value in flat.items() if name not in ("power", "questions")})
    for title, tables in (("power", plan.power), ("questions", [dataclasses.asdict(q) for q in plan.questions])):
        for table in tables:
            text += f"\n[[{title}]]\n" + "".join(f"{name} = {_toml(value)}\n" for name, value in table.items())
    write_text(folder / PLAN, text)
    return read_plan(folder)


def read_plan(folder: Path) -> Plan:
    """The plan of a study's folder.

    Raises: OSError: there is none.  ValueError: it does not say what a plan says; names the file.
    """
    path = folder / PLAN
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {PLAN}: `qrlora survey new` makes one")
    text = read_text(path)
    try:
        told = tomllib.loads(text)
        told["questions"] = tuple(Question(**{**q, "words": tuple(q["words"])}) for q in told.get("questions", ()))
        told["methods"] = tuple(told.get("methods", ()))
        told["power"] = tuple(told.get("power", ()))
        return Plan(**told, text=text)
    except (tomllib.TOMLDecodeError, TypeError, KeyError) as error:
        reason = str(error).replace("Plan.__init__()", "").replace("Question.__init__()", "a question").strip()
        raise ValueError(f"{path}: {reason}") from error


def _toml(value: Any) -> str:
    """A value as TOML writes it; JSON's strings, numbers and lists of them are TOML, too."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def pictures_csv(pictures: Sequence[Picture]) -> str:
    """pictures.csv beside a plan: a line for each image, what machines said of it in columns of their own."""
    scores = list(dict.fromkeys(name for x in pictures for name in x.scores))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*COLUMNS, *scores], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**{name: getattr(x, name) for name in COLUMNS}, **x.scores} for x in pictures)
    return buffer.getvalue()


def read_pictures_csv(folder: Path, plan: Plan) -> list[Picture]:
    """The images of a study, read from pictures.csv. Raises: OSError, ValueError: not those of the plan."""
    text = read_text(folder / TABLE)
    if hashlib.sha256(text.encode()).hexdigest() != plan.pictures_sha256:
        raise ValueError(f"{folder / TABLE} is not the one that {PLAN} was made with: make the study anew")
    pictures = []
    for row in csv.DictReader(io.StringIO(text)):
        scores = {name: float(x) for name, x in row.items() if name not in COLUMNS and x}
        told = {name: row[name] for name in COLUMNS if name != "seed"}
        pictures.append(Picture(**told, seed=int(row["seed"]), scores=scores))
    return pictures
