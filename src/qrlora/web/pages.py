"""Pages from templates, and the few files that go with them. No path ever comes from outside. [jinja2]"""

import hashlib
import logging
import mimetypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

FOLDER = Path(__file__).parent
FOREVER = {"Cache-Control": "public, max-age=31536000, immutable"}
"""Of files whose address changes with their content."""


class Pages:
    """Templates of one application, over those of this folder; and all files of their static folders, in memory.

    In a template, `static("style.css")` is a file's address.
    """

    def __init__(self, folders: Sequence[Path]):
        places = [*folders, FOLDER]
        self.files = {
            path.name: path.read_bytes()
            for place in reversed(places)
            for path in sorted((place / "static").glob("*.*"))
        }
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader([place / "templates" for place in places]),
            autoescape=True,  # whatever the file's name
            undefined=jinja2.StrictUndefined,
            auto_reload=False,  # no look at the disk for every page
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._digests = {name: hashlib.sha256(data).hexdigest()[:12] for name, data in self.files.items()}
        self._templates.globals["static"] = lambda name: f"/static/{name}?{self._digests[name]}"

    def text(self, template: str, **told: Any) -> str:
        """A page."""
        return self._templates.get_template(template).render(told)

    def page(self, template: str, status: int = 200, **told: Any) -> Response:
        """An answer with a page."""
        return Response(self.text(template, **told), status, media_type="text/html")


Refusal = Callable[[int, str], bytes]
"""(status, reason) -> the page that says so. Reasons are those of `security.Guard`, and "token": nobody who was let in;
"page": there is none; "storage": what was sent could not be kept, or what is shown not be read."""


def application(pages: Pages, refuse: Refusal) -> FastAPI:
    """An application with its static files, which describes itself to nobody; what goes wrong is a page of `refuse`."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    def refusal(status: int, reason: str) -> Response:
        return Response(refuse(status, reason), status, media_type="text/html")

    @app.get("/static/{name}")
    async def static(name: str) -> Response:
        """A static file of the pages."""
        if name not in pages.files:
            raise HTTPException(404)
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        return Response(pages.files[name], media_type=kind, headers=FOREVER)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        """The page for a browser without the token, or for an address that there is not."""
        return refusal(403, "token") if error.status_code == 403 else refusal(404, "page")

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        """What nobody reads: the browser has left in the middle of what it was sending."""
        return Response(status_code=400)

    @app.exception_handler(RequestValidationError)
    @app.exception_handler(FileNotFoundError)
    async def missing(request: Request, error: Exception) -> Response:
        """The page for what there is not, or no longer."""
        return refusal(404, "page")

    @app.exception_handler(OSError)
    async def unstorable(request: Request, error: OSError) -> Response:
        """The page for a full disk, or a database that cannot be reached; the reason goes to the terminal."""
        logging.getLogger("uvicorn.error").error("%s", error)
        return refusal(503, "storage")

    return app
