"""Raters and the researcher in a real browser: Debian's chromium. Skipped where there is none; CI installs it."""

import re

import pytest

import ratings
import servers
from qrlora.survey.rater_store import Study
from qrlora.survey.report import write_report

pytestmark = [
    pytest.mark.skipif(servers.CHROMIUM is None, reason="no chromium here"),
    pytest.mark.processes,
]
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study with sheets of 12 pages."""
    folder = ratings.folder(tmp_path_factory.mktemp("study"), raters=20)
    text = (folder / "plan.toml").read_text()
    for name, value in {"inputs": 2, "comparisons": 2, "checks": 1, "repeats": 1}.items():
        text = re.sub(rf"(?m)^{name} = \d+", f"{name} = {value}", text)
    (folder / "plan.toml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def served(made):
    with servers.survey(made) as (raters, researcher, _):
        yield raters, researcher


@pytest.fixture(scope="module")
def chromium():
    with servers.chromium() as browser:
        yield browser


@pytest.fixture
def window(chromium, served):
    """Opens windows; at the end none has asked another host, or complained on its console."""
    contexts, wrong = [], []

    def opened(**told):
        contexts.append(chromium.new_context(**told))
        page = contexts[-1].new_page()
        wrong.append(servers.watch(page, tuple(address.split("/?")[0] for address in served)))
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [x for of_page in wrong for x in of_page] == []


def begin(page, address, look=lambda page: None):
    page.goto(address)
    page.check("input[name=consent]")
    page.click("main button")
    page.wait_for_url("**/about-you")
    look(page)
    page.click("main button")  # tells nothing about oneself
    page.wait_for_url("**/item/1")


def test_a_rater_by_keys_on_pages_that_everybody_can_read(window, served, made):
    page = window()
    page.goto(served[0])
    servers.check_accessible(page)
    begin(page, served[0], servers.check_accessible)
    looked = set()
    while not page.url.endswith("/thanks"):
        here, levels = page.url, page.query_selector(".stage.levels") is not None
        sizes = page.eval_on_selector_all(".stage img", "all => all.map(x => [x.width, x.height])")
        assert len({tuple(x) for x in sizes}) == 1, "pictures that are compared are of one size"
        if levels not in looked:
            looked.add(levels)
            servers.check_accessible(page)
        if levels:
            for key in ("3", "4", "1", "Enter"):
                page.keyboard.press(key)
        else:
            page.keyboard.press("ArrowRight")
        page.wait_for_url(lambda url, here=here: url != here)
    servers.check_accessible(page)
    assert looked == {True, False} and page.locator("strong code").inner_text()
    study = Study(made)
    who = next(x for x in study.raters_and_answers()[0] if x["finished"])
    sheet = {entry.item: entry for entry in study.sheets[who["sheet"]]}
    for x in study.raters_and_answers()[1]:
        if x["rater"] == who["id"]:
            wanted = {"overall": 3, "content": 4, "style": 1}.get(x["question"])
            right = 1 if sheet[x["item"]].flipped else -1  # the right one is the item's first, where sides are changed
            assert x["value"] == (right if wanted is None else wanted)


def test_a_rater_on_a_phone_without_javascript(window, served):
    page = window(java_script_enabled=False, **PHONE)
    begin(page, served[0])
    while not page.url.endswith("/thanks"):
        here = page.url
        if page.locator(".stage.levels").count():
            for group in page.locator("fieldset").all():
                group.locator("label").nth(4).tap()
            page.locator("button.button").tap()
        else:
            page.locator("button.answer").first.tap()
        page.wait_for_url(lambda url, here=here: url != here)
    assert page.locator("strong code").inner_text()


def test_no_page_is_wider_than_a_phone_and_the_back_button_and_two_tabs_lose_nothing(window, served, made):
    page = window(**PHONE)
    begin(page, served[0])
    answer = "() => { document.querySelectorAll('fieldset').forEach(x => x.querySelector('input')?.click()); }"
    for wanted in (2, 3):
        page.evaluate(answer)
        page.locator("button.answer, button.button").last.click()
        page.wait_for_url(f"**/item/{wanted}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.evaluate(answer)
    box = page.locator("button.answer, button.button").last.bounding_box()
    page.mouse.move(box["x"] + 9, box["y"] + 9)
    page.mouse.down(click_count=2)  # of a double click whose first half answered the page before
    page.mouse.up(click_count=2)
    page.wait_for_timeout(300)
    assert page.url.endswith("/item/3"), "nobody answers what was not yet to be seen"
    page.go_back()
    page.wait_for_url("**/item/2")
    page.evaluate(answer)
    page.locator("button.answer, button.button").last.click()
    page.wait_for_url("**/item/3")
    other = page.context.new_page()
    for tab in (page, other):
        tab.goto(f"{served[0]}/item/3")
    for tab in (page, other):
        tab.evaluate(answer)
        tab.locator("button.answer, button.button").last.dblclick()
        tab.wait_for_url(re.compile("/item/[45]"))
    token = next(x["value"] for x in page.context.cookies() if x["name"].startswith("rater"))
    study = Study(made)
    mine = [x for x in study.raters_and_answers()[1] if x["rater"] == study.rater_of_token(token).id]
    keys = [(x["item"], x["question"]) for x in mine]
    assert len(keys) == len(set(keys)), "the same answer again is no new row"


def test_the_researchers_page_follows_by_itself(window, served, made):
    page = window(**PHONE)
    page.goto(served[1])
    servers.check_accessible(page)
    assert "token" not in page.url and page.evaluate("document.documentElement.scrollWidth") <= 390
    before = page.locator("#progress").inner_text()
    Study(made).begin_rater("link")
    page.wait_for_function("before => document.querySelector('#progress').innerText !== before", arg=before)


def test_the_report_is_a_page_that_everybody_can_read(chromium, made, tmp_path):
    study = Study(made)
    for seed in range(2):
        ratings.answer(study, study.begin_rater("link"), seed=seed)
    *_, path = write_report(study, tmp_path)[1]
    page = chromium.new_page()
    wrong = servers.watch(page, (tmp_path.as_uri(),))
    page.goto(path.as_uri())
    assert page.locator("img").count() >= 3
    assert page.evaluate("() => [...document.images].every(x => x.complete && x.naturalWidth > 0)")
    servers.check_accessible(page)
    page.close()
    assert wrong == []
