"""What guards every page: Host and Origin are checked, bodies bounded, rates limited, headers strict.

A page on this machine is not safe by that alone: any site that is open in the same browser can send requests to it, and
a name that changes its address (DNS rebinding) makes them look like its own. So Host must be one of a list.
"""

import hashlib
import ipaddress
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; object-src 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with "no-referrer" browsers would not tell our forms their own Origin
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "X-Robots-Tag": "noindex",
}
"""Of every answer. Nothing from another host, no script or style within a page."""
SAFE = ("GET", "HEAD")
LARGEST_FORM = 64 * 1024
"""Bytes of a request's body, where a page takes no files."""


class RateLimit:
    """So many requests a second from one address on average, and so many at once (a token bucket).

    Addresses are kept in memory alone, hashed with a number that ends with the process, and only until their bucket is
    full again; at rate 0, never, it is a count. Of IPv6 one address is a network of 64 bits: a household has as many.
    """

    def __init__(self, rate: float, burst: float):
        self.rate, self.burst = rate, burst
        self._salt = secrets.token_bytes(16)
        self._left: dict[bytes, tuple[float, float]] = {}

    def allows(self, address: str) -> bool:
        """Whether the rate limit allows an address one more request, which counts it."""
        if ":" in address:
            address = str(ipaddress.ip_network((address.partition("%")[0], 64), strict=False))
        moment, key = time.monotonic(), hashlib.blake2b(address.encode(), key=self._salt, digest_size=8).digest()
        if len(self._left) > 10_000:
            self._left = {k: v for k, v in self._left.items() if v[0] + (moment - v[1]) * self.rate < self.burst}
        left, since = self._left.get(key, (self.burst, moment))
        left = min(self.burst, left + (moment - since) * self.rate)
        self._left[key] = (left - (left >= 1), moment)
        return left >= 1


class Guard:
    """ASGI middleware around an application.

    Args: hosts: the names, with port if it is not the scheme's, under which the pages may be asked for.
          limits: {path, or "" for any: its limit}.  refuse: (status, word for the reason) -> the page of a refusal.
          largest: bytes of a request's body.  uploads: {path that takes files: bytes there}.
    """

    def __init__(
        self,
        app: Any,
        hosts: Collection[str],
        limits: dict[str, RateLimit],
        refuse: Callable[[int, str], bytes],
        largest: int = LARGEST_FORM,
        uploads: Mapping[str, int] | None = None,
    ):
        self.app, self.hosts, self.limits, self.refuse, self.largest = app, frozenset(hosts), limits, refuse, largest
        self.uploads = uploads or {}

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Guard one request: refuse it, or pass it on and add security headers to the answer."""
        if scope["type"] != "http":
            return  # neither sockets nor lifespan
        headers: dict[str, str] = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}

        async def guarded(message: dict[str, Any]) -> None:
            """Add security headers to an answer."""
            if message["type"] == "http.response.start":
                names = {k.lower() for k, _ in message["headers"]}
                added = {"Cache-Control": "no-store", **HEADERS}
                more = [(k.lower().encode(), v.encode()) for k, v in added.items() if k.lower().encode() not in names]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        if (found := self._fault(scope, headers)) is not None:
            status, word = found
            page = self.refuse(status, word)
            told = [(b"content-type", b"text/html; charset=utf-8"), (b"content-length", str(len(page)).encode())]
            await guarded(
                {"type": "http.response.start", "status": status, "headers": [*told, (b"connection", b"close")]}
            )
            await guarded({"type": "http.response.body", "body": page})
            return
        await self.app(scope, receive, guarded)

    def _fault(self, scope: dict[str, Any], headers: dict[str, str]) -> tuple[int, str] | None:
        """HTTP status and reason of a request that the guard refuses; None: passed on."""
        if headers.get("host", "").lower() not in self.hosts:
            return 421, "host"
        if scope["method"] not in (*SAFE, "POST"):
            return 405, "method"
        if scope["method"] not in SAFE and not self._from_ourselves(headers):
            return 403, "origin"
        if scope["method"] not in SAFE and ("transfer-encoding" in headers or "content-length" not in headers):
            return 411, "size"  # browsers tell how long a form is
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.uploads.get(scope["path"], self.largest):
            return 413, "size"
        address = (scope.get("client") or ("",))[0]
        for limit in (self.limits.get(scope["path"]), self.limits.get("")):
            if limit is not None and not limit.allows(address):
                return 429, "rate"
        return None

    def _from_ourselves(self, headers: dict[str, str]) -> bool:
        """Whether a form was sent from one of our own pages, by its Origin and Sec-Fetch-Site headers."""
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin is None and site is None:
            return False
        return site in (None, "same-origin") and (origin is None or urlsplit(origin).netloc.lower() in self.hosts)


def hosts_of(names: Sequence[str], port: int) -> list[str]:
    """The Host headers that the guard allows: each name of this machine, and a public address ("https://a.org")."""
    found = []
    for name in names:
        if "://" in name:
            found.append(urlsplit(name).netloc.lower())
        else:
            shown = f"[{name}]" if ":" in name else name
            found += [f"{shown}:{port}", *([shown] if port == 80 else [])]
    return found
