"""The pages that raters see: what it is about, consent, the sheet page by page, thanks. [fastapi]

Every page works without JavaScript; answers go by forms. A rater's browser gets no method's name, in no way.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import RedirectResponse

from ..web.pages import FOREVER, Pages, application
from ..web.security import Guard, RateLimit, hosts_of
from ..web.serving import NAMES, Listener
from .plan import LEVELS, PICTURES, Question
from .rater_store import Rater, Study, now
from .sheets import WON, Entry, Item
from .texts import texts

COOKIE = "rater"
MONTH = 30 * 24 * 3600
SECONDS = 6
"""That a question takes, for the first page to say how long it will be."""
SIDES = ((WON, "ArrowLeft", "←"), (0, "ArrowDown", "↓"), (-WON, "ArrowRight", "→"))
"""Answers to a comparison from left to right, with their keys."""
PREVIEW = "ASSIGNMENT_ID_NOT_AVAILABLE"
"""What MTurk sends instead of an assignment while somebody only looks."""


async def sent(request: Request) -> dict[str, str]:
    """The fields of a form."""
    return {name: value for name, value in (await request.form()).items() if isinstance(value, str)}


FORM = Depends(sent)


def rater_app(study: Study, listener: Listener) -> Guard:
    """The FastAPI application for raters."""
    pages, app = Pages([Path(__file__).parent]), application()
    pages.serve_static(app)
    words = texts(study.plan.language)
    show = functools.partial(pages.page, words=words, language=study.plan.language)
    entry = Entrance(study, words, show, secure=listener.public != "")
    entry.add_to(app)
    Rating(study, words, show).add_to(app)

    def refuse(status: int, word: str) -> bytes:
        text = words["too_many"] if word == "rate" else words["stale"] if word == "origin" else words["no_page"]
        told = {"heading": words["sorry"], "text": text, "link": "", "language": study.plan.language}
        return pages.text("message.html", **told).encode()

    @app.get("/picture/{file}")
    def picture(file: str) -> Response:
        if file not in study.pictures:
            return Response(status_code=404)
        return Response(_bytes(study.folder / PICTURES / file), media_type="image/webp", headers=FOREVER)

    @app.exception_handler(404)
    @app.exception_handler(405)
    async def unknown(request: Request, error: Any) -> Response:
        told = {"heading": words["sorry"], "text": words["no_page"], "link": words["to_start"]}
        return show("message.html", 404, **told)

    names = [listener.public] if listener.public else []
    limits = {"": RateLimit(200, 1000), "/begin": RateLimit(1, 250)}  # a class of 200 behind one address may begin
    return Guard(app, hosts_of([*NAMES, *names], listener.port), limits, refuse)


@functools.lru_cache(512)
def _bytes(path: Path) -> bytes:
    return path.read_bytes()


class Entrance:
    """The pages before and after the sheet."""

    def __init__(self, study: Study, words: dict[str, Any], show: Callable[..., Response], secure: bool):
        self.study, self.words, self.show, self.secure = study, words, show, secure

    def add_to(self, app: FastAPI) -> None:
        """Add the routes of consent, the questions about a rater, thanks and withdrawal."""
        app.get("/")(self.start)
        app.post("/begin")(self.begin_rating)
        app.get("/about-you")(self.about_you)
        app.post("/about-you")(self.store_about_you)
        app.get("/thanks")(self.thanks)
        app.post("/withdraw")(self.withdraw)

    def start(self, request: Request) -> Response:
        """What it is about, and consent."""
        preview = request.query_params.get("assignmentId") == PREVIEW
        return self._consent(request, *platform_of_link(request.query_params), preview=preview)

    def _consent(
        self, request: Request, source: str, outside_id: str, preview: bool = False, problem: str = ""
    ) -> Response:
        """The first page that a rater sees: what the study is about, and consent."""
        who = self.study.rater_of_token(request.cookies.get(COOKIE, ""))
        if who is not None and outside_id and who.outside_id_hash != self.study.hashed(source, outside_id):
            who = None  # somebody else at this browser
        plan, entries = self.study.plan, next(iter(self.study.sheets.values()))
        questions = sum(len(plan.of(self.study.items[x.item].form)) for x in entries)
        told = {"title": plan.title, "about": plan.about, "contact": plan.contact, "items": len(entries)}
        told |= {"minutes": max(1, round(questions * SECONDS / 60)), "source": source, "outside_id": outside_id}
        done = who and who.position(self.study.sheets[who.sheet])
        told |= {"done": done, "preview": preview, "problem": problem}
        return self.show("start.html", 422 if problem else 200, **told)

    def begin_rating(self, request: Request, form: dict[str, str] = FORM) -> Response:
        """A rater consents and gets a sheet."""
        source, outside_id = form.get("source", ""), form.get("outside_id", "")[:200]
        source = source if source in ("prolific", "mturk") else "link"
        if form.get("consent") != "yes":
            return self._consent(request, source, outside_id, problem=self.words["consent_missing"])
        token = self.study.begin_rater(source, outside_id)
        if not token:
            told = {"heading": self.words["full"], "text": self.words["full_text"], "link": ""}
            return self.show("message.html", **told)
        answer = RedirectResponse("/about-you", 303)
        told = {"max_age": MONTH, "httponly": True, "samesite": "lax", "secure": self.secure}
        answer.set_cookie(COOKIE, token, **told)
        return answer

    def about_you(self, request: Request) -> Response:
        """Age and experience, if one likes."""
        return self.show("about_you.html") if self._who(request) else self._lost()

    def store_about_you(self, request: Request, form: dict[str, str] = FORM) -> Response:
        """Store what a rater says of age and experience."""
        if (who := self._who(request)) is None:
            return self._lost()
        chosen = {
            name: choices[int(form[name])] if form.get(name, "").isdecimal() and int(form[name]) < len(choices) else ""
            for name, choices in (("age", self.words["ages"]), ("experience", self.words["experiences"]))
        }
        self.study.describe(who.id, **chosen)
        return RedirectResponse("/item", 303)

    def thanks(self, request: Request) -> Response:
        """The last page: a rater's completion code."""
        if (who := self._who(request)) is None:
            return self._lost()
        if not who.finished:
            return RedirectResponse("/item", 303)
        prolific = who.source == "prolific"
        code = self.study.platform_code if prolific else self.study.code(who.id)
        return self.show("thanks.html", code=code, number=who.id, source=who.source)

    def withdraw(self, request: Request) -> Response:
        """A rater withdraws: erase everything of theirs."""
        if (who := self._who(request)) is None:
            return self._lost()
        self.study.erase_rater(who.id)
        answer = self.show("message.html", heading=self.words["erased"], text=self.words["erased_text"], link="")
        answer.delete_cookie(COOKIE)
        return answer

    def _who(self, request: Request) -> Rater | None:
        return self.study.rater_of_token(request.cookies.get(COOKIE, ""))

    def _lost(self) -> Response:
        return lost(self.show, self.words)


class Rating:
    """The sheet, page by page."""

    def __init__(self, study: Study, words: dict[str, Any], show: Callable[..., Response]):
        self.study, self.words, self.show = study, words, show

    def add_to(self, app: FastAPI) -> None:
        app.get("/item")(self.current)
        app.get("/item/{position}")(self.item_page)
        app.post("/item/{position}")(self.store_answers)

    def current(self, request: Request) -> Response:
        """Where this rater is."""
        who = self.study.rater_of_token(request.cookies.get(COOKIE, ""))
        return lost(self.show, self.words) if who is None else self._go(who)

    def item_page(self, position: int, request: Request) -> Response:
        """The page of an item of a rater's sheet: the first that is not answered, or one before it."""
        if (who := self.study.rater_of_token(request.cookies.get(COOKIE, ""))) is None:
            return lost(self.show, self.words)
        entries = self.study.sheets[who.sheet]
        if not 1 <= position <= min(len(entries), who.position(entries) + 1):
            return self._go(who)
        return self._page(who, position)

    def store_answers(self, position: int, request: Request, form: dict[str, str] = FORM) -> Response:
        """Store a rater's answers to the page of an item."""
        if (who := self.study.rater_of_token(request.cookies.get(COOKIE, ""))) is None:
            return lost(self.show, self.words)
        entries = self.study.sheets[who.sheet]
        if not 1 <= position <= min(len(entries), who.position(entries) + 1):
            return self._go(who)
        entry = entries[position - 1]
        moment, _, mark = form.get("shown", "").partition(".")
        if not moment.isdecimal() or mark != self.study.signed("shown", who.id, entry.item, int(moment)):
            told = {"heading": self.words["sorry"], "text": self.words["stale"], "link": self.words["to_start"]}
            return self.show("message.html", 403, **told)
        form_of = self.study.items[entry.item].form
        questions = self.study.plan.of(form_of)
        allowed = {str(value) for value in (range(LEVELS) if form_of == "levels" else (-WON, 0, WON))}
        if any(form.get(q.name) not in allowed for q in questions):
            return self._page(who, position, self.words["missing"])
        side = -1 if entry.flipped else 1
        self.study.record_answers(who, entry.item, {q.name: side * int(form[q.name]) for q in questions}, int(moment))
        ahead = position + 1 if position < len(entries) else 0
        return RedirectResponse(f"/item/{ahead}" if ahead else "/item", 303)

    def _go(self, who: Rater) -> Response:
        entries = self.study.sheets[who.sheet]
        place = who.position(entries) + 1
        return RedirectResponse(f"/item/{place}" if place <= len(entries) else "/thanks", 303)

    def _page(self, who: Rater, position: int, problem: str = "") -> Response:
        """Show a rater the page of an item: images and questions."""
        entries = self.study.sheets[who.sheet]
        entry, item = entries[position - 1], self.study.items[entries[position - 1].item]
        side = -1 if entry.flipped else 1
        questions, moment = self.study.plan.of(item.form), now()
        following = [x for k in entries[position : position + 2] for x in files(self.study.items[k.item])]
        told = {
            "position": position,
            "items": len(entries),
            "practice": item.role == "practice",
            "form": item.form,
            "shown": images_of_page(entry, item),
            "questions": questions,
            "answers": answer_buttons,
            "at_once": item.form == "pairs" and len(questions) == 1,
            "given": {name: side * value for name, value in who.values.get(entry.item, {}).items()},
            "mark": f"{moment}.{self.study.signed('shown', who.id, entry.item, moment)}",
            "next_pictures": dict.fromkeys(following),
            "problem": problem,
        }
        return self.show("item.html", 422 if problem else 200, **told)


def platform_of_link(asked: Any) -> tuple[str, str]:
    """(platform, its id of a rater) from a link's parameters: docs.prolific.com, docs.aws.amazon.com/AWSMechTurk."""
    for source, name in (("prolific", "PROLIFIC_PID"), ("mturk", "workerId")):
        if asked.get(name):
            return source, asked[name][:200]
    return "link", ""


def lost(show: Callable[..., Response], words: dict[str, Any]) -> Response:
    """For a browser that we do not know."""
    told = {"heading": words["sorry"], "text": words["from_start"], "link": words["to_start"]}
    return show("message.html", 403, **told)


def files(item: Item) -> list[str]:
    """All pictures of an item."""
    return [x for x in (item.content, item.style, item.left, item.right) if x]


def images_of_page(entry: Entry, item: Item) -> list[tuple[str, str]]:
    """(what it is, file) of the images on a rater's page from left to right."""
    inputs = [("content", item.content), ("style", item.style)]
    if item.form == "levels":
        return [*inputs, ("result", item.left)]
    left, right = (item.right, item.left) if entry.flipped else (item.left, item.right)
    return [*inputs, ("left", left), ("right", right)]


def answer_buttons(question: Question) -> list[tuple[int, str, str, str]]:
    """(value, word, key, key's name) of the buttons that answer a question on a rater's page, from left to right."""
    if question.form == "levels":
        return [(k, word, str(k), str(k)) for k, word in enumerate(question.words)]
    first, second, neither = question.words
    return [(value, word, key, name) for (value, key, name), word in zip(SIDES, (first, neither, second), strict=True)]
