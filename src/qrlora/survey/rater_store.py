"""The database of a running study: who has which sheet, and every answer. [sqlalchemy]"""

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

from . import plan as plans
from .database import Database, answer, item, rater, sheet, sheet_item, survey
from .sheets import Entry, Item, make_items, make_sheets

DATABASE = "survey.db"
ALIVE = sa.select(rater.c.id).where(rater.c.id == sa.bindparam("rater")).with_for_update()
"""Whether a rater is still there, whom nobody else writes for until the transaction ends."""
GIVEN = sa.select(answer).where(answer.c.rater == sa.bindparam("rater")).order_by(answer.c.revision)
"""What a rater has answered, the last of each last."""
WHO = (
    sa.select(rater, sheet.c.id.label("sheet"), answer.c.item, answer.c.question, answer.c.value)
    .join(sheet, sheet.c.taken_by == rater.c.id)
    .outerjoin(answer, answer.c.rater == rater.c.id)
    .where(rater.c.survey == sa.bindparam("survey"), rater.c.token_sha256 == sa.bindparam("token_sha256"))
    .order_by(answer.c.revision)
)
"""A rater by token, with the sheet: a row for each answer, the last of each last; one row without answers. Every page
asks for it, so it is one statement, and made once."""


@dataclass(frozen=True)
class Rater:
    """One person, with what was answered so far."""

    id: str
    sheet: int
    source: str
    outside_id_hash: str | None
    finished: bool
    values: dict[int, dict[str, int]]
    """{item: {question: the last value}}."""

    def position(self, entries: list[Entry]) -> int:
        """The first place of the sheet, from 0, without an answer; one past the last if there is none."""
        return next((k for k, entry in enumerate(entries) if entry.item not in self.values), len(entries))


class Study:
    """A study that is open: its plan and sheets in memory, all else in the database."""

    def __init__(self, folder: Path, url: str = ""):
        """Open a study; the first time its items and sheets are written. Until the first rater has begun, a changed
        plan replaces them.

        Raises: OSError: no plan, no database.  ValueError: the plan was changed since; a picture is not the plan's.
        """
        self.folder = folder
        self.refused = 0
        """How many could not begin since the server started, because as many as may had begun at their address."""
        self.plan = plans.read_plan(folder)
        pictures = plans.read_pictures_csv(folder, self.plan)
        self.pictures = {x.file: x for x in pictures}
        self.database = Database(url or sa.URL.create("sqlite", database=str(folder / DATABASE)))
        self.database.migrate()
        self.slug = slug = self.plan.pictures_sha256[:16]
        with self.database.writing() as db:
            self.database.alone(db)
            row = db.execute(sa.select(survey).where(survey.c.slug == slug)).first()
            if row is not None and row.plan_sha256 != self.plan.sha256:
                begun = db.scalar(sa.select(sa.func.count()).where(rater.c.survey == row.id))
                if begun:
                    raise ValueError(
                        f"{folder / plans.PLAN} was changed after {begun} raters had begun (it was "
                        f"{row.plan_sha256[:12]}, is {self.plan.sha256[:12]}): put it back, or make a new study"
                    )
                db.execute(sa.delete(survey).where(survey.c.id == row.id))
                row = None
            if row is None:
                self.check_pictures()
                stuff = make_items(self.plan, pictures)
                self._write_sheets(db, slug, stuff.items, make_sheets(self.plan, stuff))
                row = db.execute(sa.select(survey).where(survey.c.slug == slug)).one()
            self.id, self.secret, self.opened = row.id, row.secret, row.opened
            told = db.execute(sa.select(item.c.id, item.c.told).where(item.c.survey == self.id))
            self.items = {id: _item(x) for id, x in told}
            rows = db.execute(
                sa.select(sheet_item).join(sheet).where(sheet.c.survey == self.id).order_by("sheet", "position")
            )
            self.sheets: dict[int, list[Entry]] = {}
            for row in rows:
                self.sheets.setdefault(row.sheet, []).append(Entry(row.item, row.flipped))

    def check_pictures(self) -> None:
        """Raises: ValueError: an image file is not the one that the plan was made with.  OSError: it is not there."""
        for x in self.pictures.values():
            if hashlib.sha256((self.folder / plans.PICTURES / x.file).read_bytes()).hexdigest() != x.sha256:
                raise ValueError(
                    f"{self.folder / plans.PICTURES / x.file} is not the picture that the plan was made with"
                )

    def _write_sheets(
        self, db: sa.Connection, slug: str, items: Sequence[Item], sheets: Sequence[Sequence[Entry]]
    ) -> None:
        """Insert a study's items and sheets into its database."""
        told = {"slug": slug, "plan": self.plan.text, "plan_sha256": self.plan.sha256}
        db.execute(sa.insert(survey).values(**told, secret=secrets.token_hex(32), opened=now()))
        id = db.scalar(sa.select(survey.c.id).where(survey.c.slug == slug))
        db.execute(sa.insert(item), [{"survey": id, "number": k, "told": asdict(x)} for k, x in enumerate(items)])
        db.execute(sa.insert(sheet), [{"survey": id, "number": k} for k in range(len(sheets))])
        item_ids = {x.number: x.id for x in db.execute(sa.select(item).where(item.c.survey == id))}
        sheet_ids = {x.number: x.id for x in db.execute(sa.select(sheet).where(sheet.c.survey == id))}
        rows = [
            {"sheet": sheet_ids[k], "position": place, "item": item_ids[entry.item], "flipped": entry.flipped}
            for k, entries in enumerate(sheets)
            for place, entry in enumerate(entries)
        ]
        db.execute(sa.insert(sheet_item), rows)

    def signed(self, *words: object) -> str:
        """A mark that only this study can make of some words (HMAC-SHA-256, 128 bits)."""
        return hmac.new(self.secret.encode(), json.dumps(words).encode(), hashlib.sha256).hexdigest()[:32]

    def is_signed(self, mark: str, *words: object) -> bool:
        """Whether this study has made a mark of some words."""
        return hmac.compare_digest(mark.encode(errors="replace"), self.signed(*words).encode())

    def hashed(self, source: str, outside_id: str) -> str:
        """What is stored of the number that a platform gave a rater."""
        return self.signed("outside id", source, outside_id)

    def code(self, rater_id: str) -> str:
        """A rater's completion code: who has finished has it, and nobody can make one up."""
        return self.signed("code", rater_id)[:8].upper()

    @property
    def platform_code(self) -> str:
        """The one code that Prolific asks of everybody."""
        return self.signed("platform code")[:8].upper()

    def full(self, db: sa.Connection) -> bool:
        """Whether the stopping rule holds."""
        finished = sa.select(sa.func.count()).where(rater.c.survey == self.id, rater.c.finished.is_not(None))
        return (db.scalar(finished) or 0) >= self.plan.raters

    def begin_rater(self, source: str, outside_id: str = "") -> str:
        """A new rater takes a sheet; somebody whom a platform sends again goes on. Returns the token that the browser
        keeps, "" where no sheet is to be had."""
        token, hashed = secrets.token_urlsafe(24), self.hashed(source, outside_id) if outside_id else None
        told = {"survey": self.id, "token_sha256": _sha(token), "source": source, "outside_id_hash": hashed}
        try:
            with self.database.writing() as db:
                if hashed and self._known_again(db, hashed, token):
                    return token
                free = sa.select(sheet.c.id).where(sheet.c.survey == self.id, sheet.c.taken_by.is_(None))
                free = free.order_by(sheet.c.number).limit(1).with_for_update(skip_locked=True)
                taken = None if self.full(db) else db.scalar(free)
                if taken is None:
                    return ""
                id = secrets.token_hex(8)
                db.execute(sa.insert(rater).values(id=id, **told, consented=now()))
                db.execute(sa.update(sheet).where(sheet.c.id == taken).values(taken_by=id))
                return token
        except exc.IntegrityError:  # the same person, twice in one moment
            with self.database.writing() as db:
                return token if hashed and self._known_again(db, hashed, token) else ""

    def is_known(self, source: str, outside_id: str) -> bool:
        """Whether somebody with an outside id has begun."""
        with self.database.reading() as db:
            known = sa.and_(rater.c.survey == self.id, rater.c.outside_id_hash == self.hashed(source, outside_id))
            return db.scalar(sa.select(rater.c.id).where(known)) is not None

    def _known_again(self, db: sa.Connection, hashed: str, token: str) -> bool:
        """Give the rater with an outside id another token, if there is one."""
        whose = sa.update(rater).where(rater.c.survey == self.id, rater.c.outside_id_hash == hashed)
        return db.execute(whose.values(token_sha256=_sha(token))).rowcount > 0

    def rater_of_token(self, token: str) -> Rater | None:
        """The rater whose browser holds a token; None: nobody's."""
        if not token:
            return None
        with self.database.reading() as db:
            rows = db.execute(WHO, {"survey": self.id, "token_sha256": _sha(token)}).all()
        if not rows:
            return None
        values: dict[int, dict[str, int]] = {}
        for row in rows:
            if row.item is not None:
                values.setdefault(row.item, {})[row.question] = row.value
        one = rows[0]
        return Rater(one.id, one.sheet, one.source, one.outside_id_hash, one.finished is not None, values)

    def describe(self, rater_id: str, age: str, experience: str) -> None:
        """What a rater chose to tell."""
        with self.database.writing() as db:
            db.execute(sa.update(rater).where(rater.c.id == rater_id).values(age=age, experience=experience))

    def record_answers(self, who: Rater, item_id: int, values: Mapping[str, int], shown: int) -> None:
        """Store the answers of one page. The same ones again, as a double click sends them, are one row; others are a
        revision, and the last one counts."""
        with self.database.writing() as db:
            if db.scalar(ALIVE, {"rater": who.id}) is None:  # erased in another window
                return
            given = db.execute(GIVEN, {"rater": who.id}).all()
            before = {x.question: x for x in given if x.item == item_id}
            told = {"rater": who.id, "item": item_id, "shown": shown, "answered": now()}
            rows = [
                {**told, "question": q, "value": v, "revision": before[q].revision + 1 if q in before else 0}
                for q, v in values.items()
                if q not in before or before[q].value != v
            ]
            if rows:
                db.execute(sa.insert(answer), rows)
            if not who.finished and len({item_id, *(x.item for x in given)}) == len(self.sheets[who.sheet]):
                db.execute(sa.update(rater).where(rater.c.id == who.id).values(finished=now()))

    def erase_rater(self, rater_id: str) -> bool:
        """Remove a rater with every answer; the sheet is free again. Returns whether there was one."""
        with self.database.writing() as db:
            gone = db.execute(sa.delete(rater).where(rater.c.survey == self.id, rater.c.id == rater_id)).rowcount
            db.execute(sa.update(survey).where(survey.c.id == self.id).values(erased=survey.c.erased + gone))
        if self.database.sqlite:  # the log beside the file holds what was written before
            with self.database.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as db:
                db.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        return gone > 0

    def find_rater(self, word: str) -> str:
        """A rater's number, of that number or of the one that a platform gave; "" if there is none."""
        hashes = [self.hashed(source, word) for source in ("prolific", "mturk", "link")]
        known = sa.or_(rater.c.id == word, rater.c.outside_id_hash.in_(hashes))
        with self.database.reading() as db:
            return db.scalar(sa.select(rater.c.id).where(rater.c.survey == self.id, known)) or ""

    def progress(self) -> dict[str, int]:
        """How many raters began, finished and were erased, and how many answers there are; nothing of the results."""
        here = rater.c.survey == self.id
        with self.database.reading() as db:
            begun, finished = db.execute(sa.select(sa.func.count(), sa.func.count(rater.c.finished)).where(here)).one()
            answers = db.scalar(sa.select(sa.func.count()).select_from(answer.join(rater)).where(here))
            erased = db.scalar(sa.select(survey.c.erased).where(survey.c.id == self.id))
        return {"begun": begun, "finished": finished, "answers": answers or 0, "erased": erased or 0}

    def completion_codes(self) -> list[str]:
        """The completion codes of the raters who have finished."""
        with self.database.reading() as db:
            ids = db.scalars(sa.select(rater.c.id).where(rater.c.survey == self.id, rater.c.finished.is_not(None)))
            return sorted(map(self.code, ids))

    def raters_and_answers(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """(raters, answers) of the database, a row each, all revisions, in the order in which they came."""
        with self.database.reading() as db:
            who = sa.select(rater, sheet.c.id.label("sheet")).join(sheet, sheet.c.taken_by == rater.c.id)
            raters = db.execute(who.where(rater.c.survey == self.id).order_by(rater.c.consented, rater.c.id))
            told = sa.select(answer).join(rater).where(rater.c.survey == self.id)
            answers = db.execute(told.order_by(answer.c.answered, answer.c.rater, answer.c.item, answer.c.revision))
            return [dict(x._mapping) for x in raters], [dict(x._mapping) for x in answers]


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def _item(told: dict[str, Any]) -> Item:
    return Item(**{**told, "expected": tuple((q, low, high) for q, low, high in told["expected"])})


def _sha(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
