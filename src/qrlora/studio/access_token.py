"""Who may use the pages, and forms that are known to come from them."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from fastapi import Depends, HTTPException, Request
from fastapi.responses import RedirectResponse, Response
from starlette.datastructures import FormData


class Access:
    """The token of a studio: in the address that is opened first, from then on in a cookie that no script sees."""

    def __init__(self, token: str, port: int):
        self.token, self.cookie = token, f"studio-{port}"  # cookies do not tell ports apart
        self.form_token = hashlib.sha256(f"form {token}".encode()).hexdigest()

    def require_token(self, request: Request) -> None:
        """Raises HTTPException: a browser that was not given the token."""
        if not hmac.compare_digest(request.cookies.get(self.cookie, ""), self.token):
            raise HTTPException(403)

    def exchange_token(self, request: Request) -> Response | None:
        """Exchange the access token in an address for a cookie; None: the address has no token, or a wrong one."""
        if not hmac.compare_digest(request.query_params.get("token", ""), self.token):
            return None
        answer = RedirectResponse("/", 303)
        answer.set_cookie(self.cookie, self.token, max_age=365 * 24 * 3600, httponly=True, samesite="strict")
        return answer

    async def read_form(self, request: Request) -> FormData:
        """The form of a request with the cookie and the form token. Raises HTTPException: one is missing or wrong."""
        self.require_token(request)
        form = await request.form(max_files=100)
        sent = form.get("form_token", "")
        if not isinstance(sent, str) or not hmac.compare_digest(sent, self.form_token):
            raise HTTPException(403)
        return form


def field_text(form: FormData, name: str, default: str = "") -> str:
    """A field of a form."""
    value = form.get(name, default)
    return value.strip() if isinstance(value, str) else default


def depends(function: Any) -> Any:
    """A dependency as a default value."""
    return Depends(function)
