"""Who may use the pages of the studio and of a study's researcher, and forms that are known to come from them."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from fastapi import Depends, HTTPException, Request
from fastapi.responses import RedirectResponse, Response
from starlette.datastructures import FormData


class Access:
    """A token: in the address that is opened first, from then on in a cookie that no script sees.

    Args: cookie: its name, other for each server: cookies do not tell ports apart.  max_age: seconds; None: until the
          browser is closed.
    """

    def __init__(self, token: str, cookie: str, max_age: int | None = None):
        self.token, self.cookie, self.max_age = token, cookie, max_age
        self.form_token = hashlib.sha256(f"form {token}".encode()).hexdigest()

    def require_token(self, request: Request) -> None:
        """Raises HTTPException: a browser that was not given the token."""
        if not _equal(request.cookies.get(self.cookie, ""), self.token):
            raise HTTPException(403)

    def exchange_token(self, request: Request) -> Response | None:
        """Exchange the access token in an address for a cookie; None: the address has no token, or a wrong one."""
        if not _equal(request.query_params.get("token", ""), self.token):
            return None
        answer = RedirectResponse("/", 303)  # the token leaves the address
        answer.set_cookie(self.cookie, self.token, max_age=self.max_age, httponly=True, samesite="strict")
        return answer

    async def read_form(self, request: Request) -> FormData:
        """The form of a request with the cookie and the form token. Raises HTTPException: one is missing or wrong."""
        self.require_token(request)
        form = await request.form(max_files=100)
        if not _equal(field_text(form, "form_token"), self.form_token):
            raise HTTPException(403)
        return form


def field_text(form: FormData, name: str, default: str = "") -> str:
    """A field of a form."""
    value = form.get(name, default)
    return value.strip() if isinstance(value, str) else default


def depends(function: Any) -> Any:
    """A dependency as a default value."""
    return Depends(function)


def _equal(sent: str, secret: str) -> bool:
    """Whether a text is the secret one, in a time that does not tell how much of it was right."""
    return hmac.compare_digest(sent.encode(errors="replace"), secret.encode())
