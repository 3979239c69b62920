"""`qrlora survey serve`: raters at one port, the researcher at another. Two applications, that share nothing but the
study."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..web.serving import LOOPBACK, listen, serve
from .rater_pages import PER_ADDRESS, rater_app
from .rater_store import Study
from .researcher_pages import researcher_app


def serve_study(
    folder: Path,
    url: str = "",
    *,
    port: int = 8800,
    researcher_port: int = 8801,
    address: str = LOOPBACK,
    public: str = "",
    per_address: int = PER_ADDRESS,
    on_ready: Callable[[str, str], Any] = lambda raters, researcher: None,
) -> None:
    """Serve a study until Ctrl-C.

    Args:   url: of the database; "": SQLite in the folder.  address, public: see `web.serving.listen`; the researcher's
            pages are on loopback whatever they are.  per_address: how many raters may begin at one address.
            on_ready: (address for raters, address for the researcher).
    Raises: OSError, ValueError: see `Study`, `listen`.
    """
    study = Study(folder, url)
    raters, researcher = listen(port, address, public), listen(researcher_port)
    app, token = researcher_app(study, researcher, raters.address)
    serve(
        [(rater_app(study, raters, per_address), raters), (app, researcher)],
        lambda: on_ready(raters.address, f"{researcher.address}/?token={token}"),
    )
