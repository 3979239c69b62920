"""The pages that raters see: what it is about, consent, the sheet page by page, thanks. [fastapi]

Every page works without JavaScript; answers go by forms. A rater's browser gets no method's name, in no way.
"""

import functools
import secrets
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import RedirectResponse

from ..web.access_token import depends
from ..web.pages import FOREVER, Pages, application
from ..web.security import Guard, RateLimit, hosts_of
from ..web.serving import NAMES, Listener
from .plan import LEVELS, PICTURES, Question
from .rater_store import Rater, Study, now
from .sheets import WON, Entry, Item
from .texts import texts

MONTH = 30 * 24 * 3600
SECONDS = 6
"""That a question takes, for the first page to say how long it will be."""
SIDES = ((WON, "ArrowLeft", "←"), (0, "ArrowDown", "↓"), (-WON, "ArrowRight", "→"))
"""Answers to a comparison from left to right, with their keys."""
PREVIEW = "ASSIGNMENT_ID_NOT_AVAILABLE"
"""What MTurk sends instead of an assignment while somebody only looks."""
PER_ADDRESS = 10
"""Raters who may begin at one address while a server runs: a household, or a small office."""
RATE, BEGINNING = (200, 1000), (1, 250)
"""Requests a second from one address, and at once; and of raters who begin: a class of 200 behind one address may."""


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form."""
    return {name: value for name, value in (await request.form()).items() if isinstance(value, str)}


def rater_app(study: Study, listener: Listener, per_address: int = PER_ADDRESS) -> Guard:
    """The FastAPI application for raters.

    Args:   per_address: how many may begin at one address.
    Raises: ValueError: under 1; a picture is not the plan's.  OSError: a picture is missing.
    """
    study.check_pictures()
    if per_address < 1:
        raise ValueError(f"at one address at least 1 rater must be able to begin, got {per_address}")
    raters = RaterPages(study, listener.public != "", per_address)
    app = application(raters.pages, raters.refuse)
    raters.add_routes(app)
    names = [listener.public] if listener.public else []
    limits = {"": RateLimit(*RATE), "/begin": RateLimit(*BEGINNING)}
    return Guard(app, hosts_of([*NAMES, *names], listener.port), limits, raters.refuse)


@functools.lru_cache(512)
def _bytes(path: Path) -> bytes:
    return path.read_bytes()


class RaterPages:
    """The pages of a rater, whom a cookie names.

    Args: secure: whether the cookie is for TLS alone.
    """

    def __init__(self, study: Study, secure: bool, per_address: int):
        self.study, self.words, self.secure = study, texts(study.plan.language), secure
        self.beginners = RateLimit(0, per_address)
        self.pages, self.cookie = Pages([Path(__file__).parent]), f"rater-{study.slug[:8]}"

    def add_routes(self, app: FastAPI) -> None:
        """Add the routes: consent, questions about the rater, the sheet, thanks, withdrawal, images."""
        form = depends(read_form)

        @app.get("/")
        def start(request: Request) -> Response:
            """What it is about, and consent."""
            preview = request.query_params.get("assignmentId") == PREVIEW
            return self.consent_page(request, *platform_of_link(request.query_params), preview=preview)

        @app.post("/begin")
        def begin(request: Request, sent: dict[str, str] = form) -> Response:
            """A rater consents and gets a sheet."""
            return self.begin_rating(request, sent)

        @app.get("/about-you")
        def about_you(request: Request) -> Response:
            """Age and experience, if one likes."""
            self.rater_of(request)
            return self.show("about_you.html")

        @app.post("/about-you")
        def store_about_you(request: Request, sent: dict[str, str] = form) -> Response:
            """Store what a rater says of age and experience."""
            chosen = {
                name: dict(zip(map(str, range(len(choices))), choices, strict=True)).get(sent.get(name, ""), "")
                for name, choices in (("age", self.words["ages"]), ("experience", self.words["experiences"]))
            }
            self.study.describe(self.rater_of(request).id, **chosen)
            return RedirectResponse("/item", 303)

        @app.get("/item")
        def current(request: Request) -> Response:
            """To the page of the sheet where this rater is."""
            return self.to_current_item(self.rater_of(request))

        @app.get("/item/{position}")
        def item(position: int, request: Request) -> Response:
            """The page of an item of a rater's sheet: the first that is not answered, or one before it."""
            who = self.rater_of(request)
            return self.item_page(who, position) if self.reached(who, position) else self.to_current_item(who)

        @app.post("/item/{position}")
        def answer(position: int, request: Request, sent: dict[str, str] = form) -> Response:
            """Store a rater's answers to the page of an item."""
            who = self.rater_of(request)
            return self.store_answers(who, position, sent) if self.reached(who, position) else self.to_current_item(who)

        @app.get("/thanks")
        def thanks(request: Request) -> Response:
            """The last page: a rater's completion code."""
            who = self.rater_of(request)
            if not who.finished:
                return RedirectResponse("/item", 303)
            code = self.study.platform_code if who.source == "prolific" else self.study.code(who.id)
            return self.show("thanks.html", code=code, number=who.id, source=who.source)

        @app.post("/withdraw")
        def withdraw(request: Request) -> Response:
            """A rater withdraws: erase everything of theirs."""
            self.study.erase_rater(self.rater_of(request).id)
            answer = self.message("erased", "erased_text")
            answer.delete_cookie(self.cookie)
            return answer

        @app.get("/picture/{file}")
        def picture(file: str) -> Response:
            """An image of the study under its random name."""
            if file not in self.study.pictures:
                raise HTTPException(404)
            content = _bytes(self.study.folder / PICTURES / file)
            return Response(content, media_type="image/webp", headers=FOREVER)

    def show(self, template: str, status: int = 200, **told: Any) -> Response:
        """A page in the study's language."""
        return self.pages.page(template, status, words=self.words, language=self.study.plan.language, **told)

    def message(self, heading: str, text: str, status: int = 200, link: str = "") -> Response:
        """A page with nothing but a text. Args: names of texts."""
        return self.show("message.html", status, heading=self.words[heading], text=self.words[text], link=link)

    def refuse(self, status: int, reason: str) -> bytes:
        """What a rater reads whose request was refused."""
        names = {"rate": "too_many", "origin": "stale", "token": "from_start", "storage": "not_stored"}
        link = self.words["to_start"] if reason in ("token", "page") else ""
        return bytes(self.message("sorry", names.get(reason, "no_page"), status, link).body)

    def rater_of(self, request: Request) -> Rater:
        """Whose browser asks. Raises HTTPException: nobody's that we know."""
        if (who := self.study.rater_of_token(request.cookies.get(self.cookie, ""))) is None:
            raise HTTPException(403)
        return who

    def consent_page(
        self, request: Request, source: str, outside_id: str, preview: bool = False, problem: str = ""
    ) -> Response:
        """The first page that a rater sees: what the study is about, and consent."""
        who = self.study.rater_of_token(request.cookies.get(self.cookie, ""))
        if who is not None and outside_id and who.outside_id_hash != self.study.hashed(source, outside_id):
            who = None  # somebody else at this browser
        plan, entries = self.study.plan, next(iter(self.study.sheets.values()))
        questions = sum(len(plan.of(self.study.items[x.item].form)) for x in entries)
        told = {"title": plan.title, "about": plan.about, "contact": plan.contact, "items": len(entries)}
        told |= {"minutes": max(1, round(questions * SECONDS / 60)), "source": source}
        told |= {"outside_id": outside_id or secrets.token_hex(8)}  # so that a double click is one rater
        done = who and who.position(self.study.sheets[who.sheet])
        told |= {"done": done, "preview": preview, "problem": problem}
        return self.show("start.html", 422 if problem else 200, **told)

    def begin_rating(self, request: Request, sent: dict[str, str]) -> Response:
        """A rater consents and gets a sheet."""
        source, outside_id = sent.get("source", ""), sent.get("outside_id", "")[:200]
        source = source if source in ("prolific", "mturk") else "link"
        if sent.get("consent") != "yes":
            return self.consent_page(request, source, outside_id, problem=self.words["consent_missing"])
        address = request.client.host if request.client else ""
        if not self.study.is_known(source, outside_id) and not self.beginners.allows(address):
            self.study.refused += 1
            return self.message("sorry", "too_many_here", 429)
        token = self.study.begin_rater(source, outside_id)
        if not token:
            return self.message("full", "full_text")
        answer = RedirectResponse("/about-you", 303)
        answer.set_cookie(self.cookie, token, max_age=MONTH, httponly=True, samesite="lax", secure=self.secure)
        return answer

    def reached(self, who: Rater, position: int) -> bool:
        """Whether a rater may see a page of the sheet: the first that is not answered, or one before it."""
        entries = self.study.sheets[who.sheet]
        return 1 <= position <= min(len(entries), who.position(entries) + 1)

    def to_current_item(self, who: Rater) -> Response:
        """To the first page of a rater's sheet that is not answered, or to the last page."""
        entries = self.study.sheets[who.sheet]
        place = who.position(entries) + 1
        return RedirectResponse(f"/item/{place}" if place <= len(entries) else "/thanks", 303)

    def store_answers(self, who: Rater, position: int, sent: dict[str, str]) -> Response:
        """Store a rater's answers to the page of an item."""
        entries = self.study.sheets[who.sheet]
        entry = entries[position - 1]
        moment, _, mark = sent.get("shown", "").partition(".")
        if not self.study.is_signed(mark, "shown", who.id, entry.item, moment):
            return self.message("sorry", "stale", 403, self.words["to_start"])
        form = self.study.items[entry.item].form
        questions = self.study.plan.of(form)
        allowed = {str(value) for value in (range(LEVELS) if form == "levels" else (-WON, 0, WON))}
        if any(sent.get(q.name) not in allowed for q in questions):
            return self.item_page(who, position, self.words["missing"])
        side = -1 if entry.flipped else 1
        self.study.record_answers(who, entry.item, {q.name: side * int(sent[q.name]) for q in questions}, int(moment))
        return RedirectResponse(f"/item/{position + 1}" if position < len(entries) else "/item", 303)

    def item_page(self, who: Rater, position: int, problem: str = "") -> Response:
        """The page of an item of a rater's sheet: images and questions."""
        entries = self.study.sheets[who.sheet]
        entry, item = entries[position - 1], self.study.items[entries[position - 1].item]
        side = -1 if entry.flipped else 1
        questions, moment = self.study.plan.of(item.form), str(now())
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
