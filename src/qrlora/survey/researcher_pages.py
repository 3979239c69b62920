"""What the researcher sees while a study runs: how far it is, and the links to hand out; never results. [fastapi]"""

import secrets
from pathlib import Path
from typing import Any

from fastapi import Request, Response

from ..web.access_token import Access, depends
from ..web.pages import Pages, application
from ..web.security import Guard, RateLimit, hosts_of
from ..web.serving import NAMES, Listener
from .rater_store import Study


def researcher_app(study: Study, listener: Listener, raters_at: str) -> tuple[Guard, str]:
    """The application for the researcher, and the token without which it shows nothing.

    Args: raters_at: the address of the raters' pages.
    """
    pages, access = Pages([Path(__file__).parent]), Access(secrets.token_urlsafe(24), f"researcher-{listener.port}")

    def refuse(status: int, reason: str) -> bytes:
        """What the researcher reads whose request was refused."""
        texts = {"page": "There is no such page.", "storage": "The study's database cannot be read just now."}
        text = texts.get(reason, "Open the address that `qrlora survey serve` has printed, with its token.")
        return pages.text("message.html", heading="Not here", text=text, link="").encode()

    def progress_context() -> dict[str, Any]:
        """What the page shows of a study's progress."""
        return {
            "plan": study.plan,
            "counts": study.progress(),
            "codes": study.completion_codes(),
            "refused": study.refused,
        }

    app = application(pages, refuse)

    @app.get("/")
    def start(request: Request) -> Response:
        """The researcher's page: how far the study is, and the links for raters."""
        if (entered := access.exchange_token(request)) is not None:
            return entered
        access.require_token(request)
        told = {"address": raters_at, "platform_code": study.platform_code}
        return pages.page("researcher.html", **told, **progress_context())

    @app.get("/progress", dependencies=[depends(access.require_token)])
    def progress() -> Response:
        """The part of the researcher's page that says how far the study is."""
        return pages.page("progress.html", **progress_context())

    return Guard(app, hosts_of(NAMES, listener.port), {"": RateLimit(20, 100)}, refuse), access.token
