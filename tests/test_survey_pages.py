"""What raters and the researcher see, through the applications themselves."""

import html
import re
import socket

import pytest
from fastapi.testclient import TestClient

import ratings
from qrlora.survey import rater_pages
from qrlora.survey.rater_pages import rater_app
from qrlora.survey.rater_store import DATABASE, Study
from qrlora.survey.researcher_pages import researcher_app
from qrlora.survey.texts import texts
from qrlora.web.security import HEADERS
from qrlora.web.serving import Listener

WORDS = texts("en")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return ratings.folder(tmp_path_factory.mktemp("study"))


@pytest.fixture
def study(made, tmp_path):
    return Study(made, f"sqlite:///{tmp_path / DATABASE}")


@pytest.fixture
def listener():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield Listener(taken)


@pytest.fixture
def browser(study, listener):
    """Makes browsers, each with cookies of its own."""
    app = rater_app(study, listener)
    return lambda: Browser(app, listener.address)


class Browser:
    """A browser without JavaScript: follows redirects, fills forms."""

    def __init__(self, app, address):
        self.client = TestClient(app, base_url=address, headers={"origin": address})

    def get(self, path):
        return self.client.get(path)

    def post(self, path, **fields):
        return self.client.post(path, data=fields)

    def begin(self, query=""):
        page = self.get(f"/{query}").text
        hidden = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page))
        return self.post("/begin", consent="yes", **{k: html.unescape(v) for k, v in hidden.items()})

    def rate(self, page, answer="1"):
        """Answer every question of a page with one value."""
        names = set(re.findall(r'(?:type="radio"|<button class="answer[^"]*") name="(\w+)"', page.text))
        action = re.search(r'action="(/item/\d+)"', page.text)[1]
        mark = re.search(r'name="shown" value="([^"]+)"', page.text)[1]
        return self.post(action, shown=mark, **dict.fromkeys(names, answer))


def number(page):
    return int(re.search(r"Page (\d+) of", page.text)[1])


def test_a_rater_goes_through_the_study_without_javascript(study, browser):
    rater = browser()
    assert WORDS["stored_text"] in html.unescape(rater.get("/").text)
    page = rater.begin()
    assert WORDS["you_text"] in page.text
    page = rater.post("/about-you", age="9" * 5000, experience="\u00b2")
    page = rater.post("/about-you", age="1", experience="")
    count = len(next(iter(study.sheets.values())))
    for place in range(1, count + 1):
        assert number(page) == place
        page = rater.rate(page)
    assert WORDS["thanks"] in page.text
    (who,), answers = study.raters_and_answers()
    assert who["finished"] and who["age"] == "25-34" and who["experience"] == ""
    wanted = sum(len(study.plan.of(study.items[x.item].form)) for x in study.sheets[who["sheet"]])
    assert len(answers) == wanted
    assert study.code(who["id"]) in page.text and study.code(who["id"]) in study.completion_codes()


def test_sides_are_the_pictures_and_not_the_screens(study, browser):
    """Whoever always presses "left" prefers the first method as often as it stood on the left."""
    rater = browser()
    page = rater.begin()
    page = rater.get("/item")
    while "/item/" in str(page.url):
        page = rater.rate(page)
    (who,), answers = study.raters_and_answers()
    values = {x["item"]: x["value"] for x in answers if x["question"] == "preferred"}
    for entry in study.sheets[who["sheet"]]:
        if study.items[entry.item].form == "pairs":
            assert values[entry.item] == (-1 if entry.flipped else 1)


def test_without_consent_nothing_begins(study, browser):
    rater = browser()
    page = rater.post("/begin", source="prolific", outside_id="p1")
    assert page.status_code == 422 and WORDS["consent_missing"] in page.text and 'value="p1"' in page.text
    assert study.progress()["begun"] == 0
    assert rater.get("/?problem=hello").text.count("hello") == 0


def test_back_shows_the_answer_and_a_changed_one_is_a_revision(study, browser):
    rater = browser()
    rater.begin()
    second = rater.rate(rater.get("/item"), "1")
    assert number(second) == 2
    first = rater.get("/item/1")
    assert first.text.count("checked") == 3 or 'class="answer given"' in first.text
    rater.rate(first, "0")
    assert [x["revision"] for x in study.raters_and_answers()[1]] in ([0, 1], [0, 0, 0, 1, 1, 1])
    assert number(rater.get("/item")) == 2


def test_nobody_skips_pages_and_every_question_is_asked(study, browser):
    rater = browser()
    rater.begin()
    page = rater.get("/item/5")
    assert number(page) == 1
    mark = re.search(r'name="shown" value="([^"]+)"', page.text)[1]
    for fields in ({}, {"preferred": "7"}, {"overall": "-1"}, {"overall": "1; DROP TABLE answer"}):
        answer = rater.post("/item/1", shown=mark, **fields)
        assert answer.status_code == 422 and WORDS["missing"] in answer.text
    assert rater.post("/item/4", shown=mark, preferred="1").url.path == "/item/1"
    assert study.progress()["answers"] == 0


def test_a_form_that_we_did_not_make_is_refused(study, browser):
    rater, other = browser(), browser()
    rater.begin()
    other.begin()
    page = rater.get("/item")
    for mark in (
        "",
        "1",
        "\u00fc.\u00fc",
        f"1.{'0' * 32}",
        f"{'9' * 5000}.{'0' * 32}",
        re.search(r'name="shown" value="([^"]+)"', other.get("/item").text)[1],
    ):
        assert rater.post("/item/1", shown=mark, preferred="1", overall="1", content="1", style="1").status_code == 403
    assert study.progress()["answers"] == 0
    assert number(rater.rate(page)) == 2


def test_a_browser_that_we_do_not_know_is_sent_to_the_first_page(browser):
    for path in ("/item", "/item/1", "/about-you", "/thanks"):
        page = browser().get(path)
        assert page.status_code == 403 and WORDS["from_start"] in page.text and 'href="/"' in page.text
    assert browser().post("/withdraw").status_code == 403
    for path in ("/none", "/item/x", f"/item/{'9' * 5000}", "/picture/none.webp"):
        page = browser().get(path)
        assert page.status_code == 404 and WORDS["no_page"] in page.text


def test_who_comes_again_goes_on_and_another_person_at_the_same_browser_begins(study, browser):
    rater = browser()
    rater.begin("?PROLIFIC_PID=first&STUDY_ID=s&SESSION_ID=t")
    rater.rate(rater.get("/item"))
    assert "1 of" in rater.get("/").text and 'href="/item"' in rater.get("/").text
    elsewhere = browser()
    elsewhere.begin("?PROLIFIC_PID=first")
    assert number(elsewhere.get("/item")) == 2 and study.progress()["begun"] == 1
    assert "/begin" in elsewhere.get("/?PROLIFIC_PID=second").text
    elsewhere.begin("?PROLIFIC_PID=second")
    assert number(elsewhere.get("/item")) == 1 and study.progress()["begun"] == 2


def test_prolific_and_mturk_get_the_codes_they_want(study, browser):
    shown = {}
    for query in ("?PROLIFIC_PID=a", "?workerId=b&assignmentId=c", ""):
        rater = browser()
        rater.begin(query)
        page = rater.get("/item")
        while "/item/" in str(page.url):
            page = rater.rate(page)
        shown[query] = page.text
    prolific, mturk, link = shown.values()
    assert f"https://app.prolific.com/submissions/complete?cc={study.platform_code}" in prolific
    for page in (mturk, link):
        assert "prolific" not in page and any(code in page for code in study.completion_codes())
    preview = browser().get("/?workerId=b&assignmentId=ASSIGNMENT_ID_NOT_AVAILABLE").text
    assert WORDS["preview"] in preview and "/begin" not in preview


def test_a_rater_may_withdraw_and_nothing_is_left(study, browser):
    rater = browser()
    rater.begin()
    rater.rate(rater.get("/item"))
    assert WORDS["erased_text"] in rater.post("/withdraw").text
    assert study.raters_and_answers() == ([], []) and rater.get("/item").status_code == 403


def test_a_full_study_says_so(study, browser):
    for _ in study.sheets:
        browser().begin()
    assert WORDS["full_text"] in html.unescape(browser().begin().text)


def test_what_people_write_is_shown_and_never_run(tmp_path, listener):
    folder = ratings.folder(tmp_path, title="<script>alert(1)</script>", contact='"><img src=x>')
    app = rater_app(Study(folder), listener)
    page = Browser(app, listener.address).get("/?PROLIFIC_PID=%22%3E%3Cscript%3E").text
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;alert(1)" in page


def test_a_raters_cookie_is_for_the_server_alone_and_its_token_is_not_stored(study, browser):
    rater = browser()
    rater.client.follow_redirects = False
    cookie = rater.begin().headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and "Secure" not in cookie
    assert re.search(r"rater-\w+=([^;]+)", cookie)[1] not in str(study.raters_and_answers())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        public = Browser(rater_app(study, Listener(taken, "https://r.example.org")), "https://r.example.org")
        public.client.follow_redirects = False
        assert "Secure" in public.begin().headers["set-cookie"]


def test_no_address_is_stored(study, browser):
    rater = browser()
    rater.begin()
    rater.rate(rater.get("/item"))
    with study.database.reading() as db:
        dump = "\n".join(db.connection.dbapi_connection.iterdump())
    assert "testclient" not in dump and "127.0.0.1" not in dump


def test_no_page_of_a_study_has_a_script_or_style_within_it_or_asks_another_host(study, browser, listener):
    rater, (app, token) = browser(), researcher_app(study, listener, listener.address)
    pages = [rater.get("/"), rater.begin("?PROLIFIC_PID=a"), rater.get("/none"), browser().get("/item")]
    page = rater.get("/item")
    while page.url.path != "/thanks":
        pages.append(page)
        page = rater.rate(page)
    pages += [page, TestClient(app, base_url=listener.address).get(f"/?token={token}")]
    for page in pages:
        assert {name: page.headers[name] for name in HEADERS} == HEADERS
        assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=|javascript:", page.text)
        assert not re.search(r"(src|action)=\"(https?:)?//|<link[^>]*href=\"(https?:)?//", page.text)


def test_a_flood_from_one_address_is_refused_and_begins_no_more_sheets(study, listener, monkeypatch):
    assert rater_pages.BEGINNING[1] >= 200, "a class behind one address begins at once"
    monkeypatch.setattr(rater_pages, "BEGINNING", (0.001, 2))
    rater = Browser(rater_app(study, listener), listener.address)
    answers = [rater.post("/begin", consent="yes", source="link") for _ in range(4)]
    assert [x.status_code for x in answers] == [200, 200, 429, 429] and WORDS["too_many"] in answers[-1].text
    assert study.progress()["begun"] == 2 and rater.get("/item").status_code == 200


def test_at_one_address_so_many_raters_begin_as_the_researcher_allows_and_who_has_begun_goes_on(study, listener):
    """An address is counted in memory alone: no table has a place for one."""
    app = rater_app(study, listener, per_address=2)
    researcher, token = researcher_app(study, listener, listener.address)
    first, *others = (Browser(app, listener.address) for _ in range(4))
    assert first.begin("?PROLIFIC_PID=a").url.path == others[0].begin().url.path == "/about-you"
    refused = others[1].begin()
    assert refused.status_code == 429 and WORDS["too_many_here"] in refused.text
    assert others[2].begin("?PROLIFIC_PID=a").url.path == "/about-you" and study.progress()["begun"] == 2
    elsewhere = Browser(app, listener.address)
    elsewhere.client = TestClient(app, listener.address, headers=elsewhere.client.headers, client=("2001:db8::1", 1))
    assert elsewhere.begin().url.path == "/about-you"
    page = TestClient(researcher, base_url=listener.address).get(f"/?token={token}").text
    assert "1 could not begin" in page and "--per-address" in page
    with pytest.raises(ValueError, match="got 0"):
        rater_app(study, listener, per_address=0)


def test_a_double_click_on_begin_is_one_rater(study, browser):
    rater = browser()
    hidden = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', rater.get("/").text))
    for _ in range(2):
        assert rater.post("/begin", consent="yes", **hidden).url.path == "/about-you"
    assert study.progress()["begun"] == 1 and number(rater.get("/item")) == 1


def test_where_the_disk_is_full_a_rater_is_told_and_the_same_form_is_stored_later(study, browser):
    resource = pytest.importorskip("resource")
    rater = browser()
    rater.begin()
    page = rater.get("/item")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    answer = rater.rate(page)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert answer.status_code == 503 and WORDS["not_stored"] in answer.text and study.progress()["answers"] == 0
    assert number(rater.rate(page)) == 2
    assert study.progress()["answers"] in (1, 3)


def test_a_raters_browser_gets_no_methods_name(study, browser):
    """Blind: everything that can be fetched through every link of every page, headers and bytes."""
    rater = browser()
    seen, todo = {}, ["/", "/about-you", "/item"]
    page = rater.begin()
    while page.url.path != "/thanks":
        page = rater.rate(rater.get("/item"))
        todo += re.findall(r'(?:href|src|action)="([^"]+)"', page.text) + [page.url.path]
    for path in todo:
        if path not in seen and path.startswith("/"):
            answer = rater.get(path)
            seen[path] = answer.content + str(answer.headers).encode()
            if "html" in answer.headers.get("content-type", ""):
                todo += re.findall(r'(?:href|src|action)="([^"]+)"', answer.text)
    assert sum(path.startswith("/picture/") for path in seen) >= 12 and any("rating.js" in path for path in seen)
    for path, content in seen.items():
        for word in (b"secretname", b"pair 0", b"pair_0", b"content 0"):
            assert word not in content, (path, word)
    assert not any(word in path for path in seen for word in ("qr", "lora", "noise"))


@pytest.mark.parametrize("name", ["../plan.toml", "%2e%2e%2fplan.toml", "..\\plan.toml", "/etc/passwd", "a%00.webp"])
def test_no_picture_but_the_studys_is_served(browser, name):
    assert browser().get(f"/picture/{name}").status_code in (404, 400)


def test_the_researchers_pages_want_their_token_and_show_no_results(study, listener):
    app, token = researcher_app(study, listener, "http://127.0.0.1:1")
    stranger, owner = (TestClient(app, base_url=listener.address) for _ in range(2))
    for path in ("/", "/progress", "/?token=", "/?token=wrong"):
        assert stranger.get(path).status_code == 403
    page = owner.get(f"/?token={token}")
    assert page.status_code == 200 and "token" not in str(page.url) and token not in page.text
    assert "SameSite=strict" in page.history[0].headers["set-cookie"]
    ratings.answer(study, study.begin_rater("link"))
    page = owner.get("/progress")
    assert "1 of 4" in page.text and study.completion_codes()[0] in page.text
    assert "{{%PROLIFIC_PID%}}" in owner.get("/").text
    assert stranger.get("/progress", headers={"host": "evil.example"}).status_code == 421


def test_raters_and_researcher_are_two_applications(study, browser, listener):
    app, token = researcher_app(study, listener, "")
    assert browser().get("/progress").status_code == 404
    assert TestClient(app, base_url=listener.address).get("/item").status_code == 404
    assert token not in browser().get("/").text


def test_a_study_in_german_is_german(tmp_path, listener):
    app = rater_app(Study(ratings.folder(tmp_path, language="de")), listener)
    rater = Browser(app, listener.address)
    assert '<html lang="de">' in rater.get("/").text and "Beginnen" in rater.get("/").text
    rater.begin()
    assert "Seite 1 von" in rater.get("/item").text
