"""What the researcher sees while a study runs: how far it is, and the links to hand out; never results. [fastapi]"""

import hmac
import secrets
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.responses import RedirectResponse

from ..web.pages import Pages, application
from ..web.security import Guard, RateLimit, hosts_of
from ..web.serving import NAMES, Listener
from .rater_store import Study

COOKIE = "researcher"


def researcher_app(study: Study, listener: Listener, raters_at: str) -> tuple[Guard, str]:
    """The application for the researcher, and the token without which it shows nothing.

    Args: raters_at: the address of the raters' pages.
    """
    pages, app, token = Pages([Path(__file__).parent]), application(), secrets.token_urlsafe(24)
    pages.serve_static(app)

    def allowed(request: Request) -> bool:
        return hmac.compare_digest(request.cookies.get(COOKIE, ""), token)

    def closed(status: int, word: str = "") -> bytes:
        text = "Open the address that `qrlora survey serve` has printed, with its token."
        return pages.text("message.html", heading="Not for everybody", text=text, link="").encode()

    def told() -> dict[str, Any]:
        return {"plan": study.plan, "counts": study.progress(), "codes": study.completion_codes()}

    @app.get("/")
    def start(request: Request) -> Response:
        """The researcher's page: how far the study is, and the links for raters."""
        if hmac.compare_digest(request.query_params.get("token", ""), token):
            answer = RedirectResponse("/", 303)  # the token leaves the address
            answer.set_cookie(COOKIE, token, httponly=True, samesite="strict")
            return answer
        if not allowed(request):
            return Response(closed(403), 403, media_type="text/html")
        return pages.page("researcher.html", address=raters_at, platform_code=study.platform_code, **told())

    @app.get("/progress")
    def progress(request: Request) -> Response:
        if not allowed(request):
            return Response(closed(403), 403, media_type="text/html")
        return pages.page("progress.html", **told())

    guard = Guard(app, hosts_of(NAMES, listener.port), {"": RateLimit(20, 100)}, closed)
    return guard, token
