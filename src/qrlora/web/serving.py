"""A server on this machine: on loopback unless somebody says how else it is guarded. [uvicorn]"""

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import uvicorn

LOOPBACK = "127.0.0.1"
THINKING = 75
"""Seconds that a connection stays open between two requests, as nginx keeps it: people look before they answer."""
NAMES = (LOOPBACK, "localhost", "::1")
"""What a browser on this machine calls it."""


@dataclass(frozen=True)
class Listener:
    """A socket that listens already, so that its port is known and nobody else has it."""

    socket: socket.socket
    public: str = ""
    """"https://ratings.example.org": where a proxy with TLS answers for it."""

    @property
    def port(self) -> int:
        return self.socket.getsockname()[1]

    @property
    def address(self) -> str:
        """What to open in a browser."""
        return self.public.rstrip("/") or f"http://{self.socket.getsockname()[0]}:{self.port}"


def listen(port: int, address: str = LOOPBACK, public: str = "") -> Listener:
    """Take a port for a server; 0: any.

    Raises: ValueError: an address beyond this machine without a public address with TLS in front; no address.
            OSError: the port is taken.
    """
    if public and (urlsplit(public).scheme != "https" or not urlsplit(public).netloc):
        raise ValueError(
            f"the public address must begin with https://, as a proxy with TLS in front has it; got {public!r}"
        )
    try:
        number = ipaddress.ip_address(address)
    except ValueError as error:
        raise ValueError(f"{address!r} is no IP address to listen at; such as {LOOPBACK}") from error
    if not number.is_loopback and not public:
        raise ValueError(
            f"listening at {address} would serve other machines without encryption: put a proxy with TLS in front "
            f"(nginx, Caddy), and give its address with --public https://..."
        )
    family = socket.AF_INET6 if number.version == 6 else socket.AF_INET
    # asyncio sets TCP_NODELAY where the protocol is named: else an answer's body waits 40 ms for its head's receipt
    taken = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((address, port))
    except OSError as error:
        taken.close()
        if error.errno == errno.EADDRINUSE:
            raise OSError(error.errno, f"port {port} is taken: give another one") from error
        raise OSError(error.errno, f"{address}:{port}: {os.strerror(error.errno or 0)}") from error
    taken.listen(1024)
    return Listener(taken, public)


def serve(
    apps: Sequence[tuple[Any, Listener]],
    on_ready: Callable[[], Any] = lambda: None,
    on_stop: Callable[[], Any] = lambda: None,
) -> None:
    """Serve applications with uvicorn until Ctrl-C or SIGTERM, each at its own address. No log of who asked for what.

    Args: on_stop: called before open connections are waited for, to end those that would never end by themselves.
    """

    async def run() -> None:
        """Run one uvicorn server for each application, until all have ended."""
        servers = []
        for app, listener in apps:
            trusted = LOOPBACK if listener.public else ""  # the proxy in front tells the client's address
            quiet = {"access_log": False, "log_level": "warning", "server_header": False}
            plain = {"lifespan": "off", "ws": "none", "timeout_keep_alive": THINKING}
            config = uvicorn.Config(app, proxy_headers=bool(trusted), forwarded_allow_ips=trusted, **quiet, **plain)
            servers.append((uvicorn.Server(config), listener.socket))
        running = [asyncio.create_task(server.serve(sockets=[taken])) for server, taken in servers]
        while not all(server.started for server, _ in servers) and not any(task.done() for task in running):
            await asyncio.sleep(0.01)
        on_ready()
        while not any(server.should_exit for server, _ in servers) and not any(task.done() for task in running):
            await asyncio.sleep(0.1)
        on_stop()
        await asyncio.gather(*running)

    with contextlib.ExitStack() as sockets:
        for _, listener in apps:
            sockets.enter_context(listener.socket)
        asyncio.run(run())
