"""Pages from templates, and the few files that go with them. No path ever comes from outside. [jinja2]"""

import hashlib
import mimetypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from fastapi import FastAPI, Request, Response

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

    def serve_static(self, app: FastAPI) -> None:
        """Add the route of the pages' static files to a FastAPI application."""

        @app.get("/static/{name}")
        async def static(name: str, request: Request) -> Response:
            """A static file of the pages, or 404."""
            if name not in self.files:
                return Response(status_code=404)
            kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
            return Response(self.files[name], media_type=kind, headers=FOREVER)


def application() -> FastAPI:
    """An empty application, which describes itself to nobody."""
    return FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
