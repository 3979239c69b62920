"""What a running study keeps, on SQLite and on a real PostgreSQL."""

import contextlib
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

import ratings
from qrlora.survey import database
from qrlora.survey.counted_answers import collect_answers
from qrlora.survey.rater_pages import rater_app
from qrlora.survey.rater_store import DATABASE, Study, now
from qrlora.web.serving import Listener


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study's folder, which nobody has opened."""
    return ratings.folder(tmp_path_factory.mktemp("study"))


@pytest.fixture(params=["sqlite", "postgresql"])
def study(request, tmp_path, made):
    """A study that is open, with an empty database."""
    if request.param == "sqlite":
        yield Study(made, f"sqlite:///{tmp_path / DATABASE}")
        return
    url = request.getfixturevalue("postgresql")
    with contextlib.closing(_Database(url)):
        yield Study(made, url)


class _Database:
    """Every table of a server's database goes when this closes."""

    def __init__(self, url):
        self.engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))

    def close(self):
        with self.engine.begin() as db:
            db.exec_driver_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        self.engine.dispose()


def first(study, token):
    """(rater, first item, its question's name)."""
    who = study.rater_of_token(token)
    item = study.sheets[who.sheet][0].item
    return who, item, study.plan.of(study.items[item].form)[0].name


def rows(study):
    return [(x["item"], x["question"], x["value"], x["revision"]) for x in study.raters_and_answers()[1]]


def test_migrations_make_the_tables_that_the_code_uses(study):
    with study.database.reading() as db:
        assert compare_metadata(MigrationContext.configure(db), database.metadata) == []
    study.database.migrate()  # once more changes nothing


def test_an_answer_twice_is_one_row_and_another_answer_is_a_revision(study):
    who, item, question = first(study, study.begin_rater("link"))
    for value in (1, 1, 0, 0, 1):
        study.record_answers(who, item, {question: value}, now())
    assert rows(study) == [(item, question, 1, 0), (item, question, 0, 1), (item, question, 1, 2)]
    assert study.rater_of_token(study.begin_rater("link")).values == {}


def test_a_page_takes_one_statement_and_an_answer_three_so_that_one_core_serves_hundreds(study):
    who, item, question = first(study, token := study.begin_rater("link"))
    statements = []
    sa.event.listen(
        study.database.engine, "before_cursor_execute", lambda *told: statements.append(told[2].split()[0].upper())
    )
    study.rater_of_token(token)
    assert [x for x in statements if x != "BEGIN"] == ["SELECT"]
    statements.clear()
    study.record_answers(who, item, {question: 1}, now())
    assert [x for x in statements if x != "BEGIN"] == ["SELECT", "SELECT", "INSERT"]


def test_answers_that_arrive_in_one_moment_are_one_row(study):
    who, item, question = first(study, study.begin_rater("link"))
    gate = threading.Barrier(8)

    def send(_):
        gate.wait()
        study.record_answers(who, item, {question: 1}, 5)

    with ThreadPoolExecutor(8) as clients:
        list(clients.map(send, range(8)))
    assert rows(study) == [(item, question, 1, 0)]


def test_raters_who_come_at_once_get_a_sheet_each_until_there_are_none(study):
    gate = threading.Barrier(10)

    def come(_):
        gate.wait()
        return study.begin_rater("link")

    with ThreadPoolExecutor(10) as clients:
        tokens = list(clients.map(come, range(10)))
    assert len(study.sheets) == 8 and tokens.count("") == 2
    taken = Counter(study.rater_of_token(token).sheet for token in tokens if token)
    assert len(taken) == 8 and set(taken.values()) == {1}


def test_somebody_whom_a_platform_sends_twice_goes_on_with_the_same_sheet(study):
    with ThreadPoolExecutor(4) as clients:
        tokens = set(clients.map(lambda _: study.begin_rater("prolific", "5f00"), range(4)))
    known = [study.rater_of_token(token) for token in tokens]
    assert "" not in tokens and [x is not None for x in known].count(True) == 1, "the last browser goes on"
    assert study.progress()["begun"] == 1
    assert study.rater_of_token(study.begin_rater("mturk", "5f00")).id not in {x.id for x in known if x}
    stored = str(study.raters_and_answers())
    assert "5f00" not in stored, "the platform's number is stored as a hash alone"


def test_nobody_new_begins_once_enough_have_finished_and_those_who_began_may_finish(study):
    tokens = [study.begin_rater("link") for _ in range(5)]
    for token in tokens[:4]:
        ratings.answer(study, token)
    assert study.progress()["finished"] == 4 == study.plan.raters and study.begin_rater("link") == ""
    ratings.answer(study, tokens[4])
    assert study.progress()["finished"] == 5
    assert (
        len(set(study.completion_codes())) == 5
        and study.code(study.rater_of_token(tokens[0]).id) in study.completion_codes()
    )


def test_an_erased_rater_is_gone_and_the_sheet_is_free(study):
    tokens = [study.begin_rater("prolific", f"person {k}") for k in range(8)]
    for token in tokens[:2]:
        ratings.answer(study, token)
    who = study.rater_of_token(tokens[0])
    assert study.find_rater("person 0") == who.id == study.find_rater(who.id) and not study.find_rater("person 9")
    assert study.erase_rater(who.id) and not study.erase_rater(who.id)
    assert study.rater_of_token(tokens[0]) is None and who.id not in str(study.raters_and_answers())
    study.record_answers(who, first(study, tokens[1])[1], {"overall": 1}, now())  # from another window of theirs
    assert study.progress()["erased"] == 1 and who.id not in str(study.raters_and_answers())
    assert study.rater_of_token(study.begin_rater("link")).sheet == who.sheet


def test_what_is_erased_is_not_in_the_file_either(tmp_path, made):
    study = Study(made, f"sqlite:///{tmp_path / DATABASE}")
    token = study.begin_rater("link")
    who = study.rater_of_token(token)
    ratings.answer(study, token)
    held = lambda: any(who.id.encode() in path.read_bytes() for path in tmp_path.glob(f"{DATABASE}*"))  # noqa: E731
    assert held()
    study.erase_rater(who.id)
    assert not held()


def test_a_plan_may_change_until_somebody_has_begun(tmp_path):
    folder = ratings.folder(tmp_path)
    before = Study(folder)
    text = (folder / "plan.toml").read_text()
    (folder / "plan.toml").write_text(text.replace("sheets = 8", "sheets = 9"))
    after = Study(folder)
    assert len(before.sheets) == 8 and len(after.sheets) == 9
    token = after.begin_rater("link")
    assert Study(folder).rater_of_token(token) is not None, "a server that is started again knows everybody"
    (folder / "plan.toml").write_text(text)
    with pytest.raises(ValueError, match="was changed after 1 raters had begun"):
        Study(folder)


def test_two_studies_in_one_database_do_not_mix(study, tmp_path):
    other = Study(ratings.folder(tmp_path), str(study.database.engine.url))
    token = study.begin_rater("link")
    ratings.answer(study, token)
    assert (
        other.rater_of_token(token) is None
        and other.progress()["begun"] == 0
        and other.raters_and_answers() == ([], [])
    )


def test_a_picture_that_was_changed_or_moved_is_refused_before_raters_see_it(tmp_path):
    folder = ratings.folder(tmp_path)
    study, picture = Study(folder), next((folder / "pictures").iterdir())
    picture.rename(tmp_path / "moved")
    with pytest.raises(OSError, match=picture.name):
        rater_app(study, Listener(None, "https://r.example.org"))
    picture.write_bytes(b"another")
    with pytest.raises(ValueError, match="is not the picture that the plan was made with"):
        rater_app(study, Listener(None, "https://r.example.org"))
    (folder / "survey.db").unlink()
    with pytest.raises(ValueError, match="is not the picture that the plan was made with"):
        Study(folder)


@pytest.mark.parametrize("name", ["a b", "Frühling?x=1#y", "100%25", "-q", "a:b@c"])
def test_a_studys_folder_may_have_any_name(tmp_path, name):
    folder = ratings.folder(tmp_path).rename(tmp_path / name)
    assert Study(folder).begin_rater("link") and (folder / "survey.db").is_file()
    assert Study(folder).progress()["begun"] == 1


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("mysql://a/b", "SQLite or PostgreSQL, not mysql"),
        ("nonsense", "is no database's URL"),
        ("postgresql://nobody@127.0.0.1:1/none", "database .*refused"),
    ],
)
def test_a_database_that_cannot_be_used_is_refused_with_the_reason(made, url, reason):
    with pytest.raises((ValueError, OSError), match=reason):
        Study(made, url)


def test_the_answers_that_count_are_the_last_ones_without_practice(study):
    token = study.begin_rater("link")
    ratings.answer(study, token)
    who = study.rater_of_token(token)
    rated = next(x for x in study.sheets[who.sheet] if study.items[x.item].role == "rating")
    question = study.plan.of(study.items[rated.item].form)[0].name
    study.record_answers(who, rated.item, {question: 0}, now())
    found = collect_answers(study)
    assert {x.role for x in found.given} == {"rating", "check", "repeat"} and len(found.counted()) == len(found.given)
    (last,) = [x for x in found.given if (x.item, x.question) == (rated.item, question)]
    assert last.value == 0 and last.revisions == 1 and 2.5 < last.seconds < 60
    assert all(x.passed for x in found.given if x.passed is not None)
