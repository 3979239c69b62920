"""The tables of studies, and a database of them: SQLite in one file, or PostgreSQL by URL. [sqlalchemy, alembic]

Answers are only ever inserted. Sheets are written before anybody answers, and each is one rater's at most.
"""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy import event, exc

from .. import optional_dependencies

MIGRATIONS = Path(__file__).parent / "migrations"
WAIT = 30
"""Seconds to wait for another writer, or for a free connection."""
LOCK = 0x71726C6F7261
"""PostgreSQL's advisory lock under which one process migrates and writes a new study: "qrlora"."""

metadata = sa.MetaData(naming_convention={"ix": "ix_%(table_name)s_%(column_0_N_name)s", "pk": "pk_%(table_name)s"})
survey = sa.Table(
    "survey",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("slug", sa.String(64), nullable=False, unique=True),
    sa.Column("plan", sa.Text, nullable=False),  # the file, as it was
    sa.Column("plan_sha256", sa.String(64), nullable=False),
    sa.Column("secret", sa.String(64), nullable=False),  # signs forms, codes and outside ids
    sa.Column("opened", sa.BigInteger, nullable=False),  # milliseconds since 1970, as all times here
    sa.Column("erased", sa.Integer, nullable=False, server_default="0"),  # raters who had their answers erased
)
item = sa.Table(
    "item",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("survey", sa.ForeignKey("survey.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("told", sa.JSON, nullable=False),  # `sheets.Item`
    sa.UniqueConstraint("survey", "number", name="uq_item"),
)
rater = sa.Table(
    "rater",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("survey", sa.ForeignKey("survey.id", ondelete="CASCADE"), nullable=False),
    sa.Column("token_sha256", sa.String(64), nullable=False, unique=True),
    sa.Column("source", sa.String(16), nullable=False),
    sa.Column("outside_id_hash", sa.String(64)),
    sa.Column("consented", sa.BigInteger, nullable=False),
    sa.Column("age", sa.String(32)),
    sa.Column("experience", sa.String(64)),
    sa.Column("finished", sa.BigInteger),
    sa.UniqueConstraint("survey", "outside_id_hash", name="uq_rater_outside"),
)
sheet = sa.Table(
    "sheet",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("survey", sa.ForeignKey("survey.id", ondelete="CASCADE"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("taken_by", sa.ForeignKey("rater.id", ondelete="SET NULL"), unique=True),
    sa.UniqueConstraint("survey", "number", name="uq_sheet"),
)
sheet_item = sa.Table(
    "sheet_item",
    metadata,
    sa.Column("sheet", sa.ForeignKey("sheet.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("item", sa.ForeignKey("item.id", ondelete="CASCADE"), nullable=False),
    sa.Column("flipped", sa.Boolean, nullable=False),
)
answer = sa.Table(
    "answer",
    metadata,
    sa.Column("rater", sa.ForeignKey("rater.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("item", sa.ForeignKey("item.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("question", sa.String(64), primary_key=True),
    sa.Column("revision", sa.Integer, primary_key=True),
    sa.Column("value", sa.SmallInteger, nullable=False),
    sa.Column("shown", sa.BigInteger, nullable=False),
    sa.Column("answered", sa.BigInteger, nullable=False),
)


class Database:
    """Connections for reading and for writing."""

    def __init__(self, url: str | sa.URL):
        """Raises: ValueError: no such kind of database, or its driver is not installed."""
        try:
            kind = sa.make_url(url)
            if kind.get_backend_name() not in ("sqlite", "postgresql"):
                raise ValueError(f"a study's database is SQLite or PostgreSQL, not {kind.get_backend_name()}")
            if kind.drivername == "postgresql":
                kind = kind.set(drivername="postgresql+psycopg")
            if kind.drivername == "postgresql+psycopg":
                optional_dependencies.require("postgres", reason="a database of PostgreSQL")
            self.sqlite = kind.get_backend_name() == "sqlite"
            # PostgreSQL allows 100 connections unless told otherwise: four servers fit; it may drop one, a file cannot
            pool = {"pool_size": 20, "max_overflow": 0, "pool_timeout": WAIT, "pool_pre_ping": not self.sqlite}
            self.engine = sa.create_engine(kind, **pool)
        except exc.ArgumentError as error:
            raise ValueError(
                f"{url!r} is no database's URL; such as sqlite:///a.db, postgresql://user@host/name"
            ) from error
        if self.sqlite:
            event.listen(self.engine, "connect", _sqlite_settings)
            event.listen(self.engine, "begin", _sqlite_begin)
        self._writing = self.engine.execution_options(writing=True)
        # SQLite's own wait for another writer is to look again after ever longer sleeps: threads queue up here instead
        self._turn = threading.Lock() if self.sqlite else contextlib.nullcontext()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """One consistent view. Raises: OSError: the database cannot be reached."""
        with _explain_unreachable(self.engine), self.engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction: all of it, or none of it; on SQLite the only one. Raises: OSError, as `reading`."""
        with self._turn, _explain_unreachable(self.engine), self._writing.begin() as connection:
            yield connection

    def alone(self, connection: sa.Connection) -> None:
        """Wait until no other process prepares the database, in the length of a transaction."""
        if not self.sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))

    def migrate(self) -> None:
        """Bring the survey's tables to the newest version with Alembic. Raises: OSError."""
        with self.writing() as connection:
            self.alone(connection)
            config = Config()
            config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


@contextlib.contextmanager
def _explain_unreachable(engine: sa.Engine) -> Iterator[None]:
    """Turn sqlalchemy's OperationalError into an OSError that names the database."""
    try:
        yield
    except exc.OperationalError as error:
        reason = " ".join(str(error.orig).split())
        raise OSError(f"database {engine.url.render_as_string()}: {reason}") from error


def _sqlite_settings(connection: Any, record: Any) -> None:
    """The settings of every connection to a database in SQLite."""
    connection.isolation_level = None  # transactions begin where `_sqlite_begin` says, not where Python's driver thinks
    for pragma in (
        "busy_timeout=30000",
        "journal_mode=WAL",  # readers and the writer do not wait for each other
        "synchronous=NORMAL",  # in WAL mode a killed process loses no commit; only a power cut may lose the last ones
        "foreign_keys=ON",
        "secure_delete=ON",  # what is erased is overwritten
    ):
        connection.execute(f"PRAGMA {pragma}")


def _sqlite_begin(connection: sa.Connection) -> None:
    """A writer waits at its beginning: a reader that became one might find that it has to start over."""
    writing = connection.get_execution_options().get("writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
