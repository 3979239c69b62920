"""Real servers on loopback for the tests: PostgreSQL, `qrlora survey serve`, `qrlora studio`, Debian's chromium."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
FLAGS += ("--disable-component-update", "--disable-sync")


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser of Playwright. For a test file, not for the session: while it is open, its thread has an event loop."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


def watch(page: Any, known: tuple[str, ...]) -> list[str]:
    """What a browser's page does that it should not, as a list that grows: asking another host, complaining."""
    wrong: list[str] = []
    page.on("request", lambda x: None if x.url.startswith(known) else wrong.append(x.url))
    page.on("console", lambda x: wrong.append(x.text) if x.type in ("error", "warning") else None)
    page.on("pageerror", lambda x: wrong.append(str(x)))
    return wrong


def check_accessible(page: Any) -> None:
    """axe-core finds nothing to say about a page, its colours in dark included, and it is no wider than a phone."""
    from axe_playwright_python.sync_playwright import Axe

    before = page.viewport_size
    for scheme, rules in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):
        page.emulate_media(color_scheme=scheme)
        found = Axe().run(page, options=rules).response["violations"]
        assert [(x["id"], [node["target"] for node in x["nodes"]]) for x in found] == []
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    page.set_viewport_size(before)


def postgres_folder() -> Path | None:
    """Where the programs of the newest PostgreSQL are; None: there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


@contextlib.contextmanager
def postgres(*settings: str) -> Iterator[str]:
    """A new, empty database server on loopback; its URL. It does not run as root, who may not.

    Args: settings: such as "fsync=off".
    """
    programs, root = postgres_folder(), os.geteuid() == 0
    assert programs is not None
    user = "postgres" if root else None
    with tempfile.TemporaryDirectory(prefix="qrlora-pg") as place:
        if root:
            shutil.chown(place, "postgres")
        data = f"{place}/data"
        how = {"user": user, "cwd": place, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run([programs / "initdb", "-D", data, "-A", "trust", "-U", "rater", "--no-sync"], check=True, **how)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        told = ["-k", place, "-p", str(port), "-c", "listen_addresses=127.0.0.1"]
        told += [word for setting in settings for word in ("-c", setting)]
        server = subprocess.Popen([programs / "postgres", "-D", data, *told], **how)
        try:
            ready = [programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port), "-q"]
            for _ in range(600):
                if not subprocess.run(ready).returncode:
                    break
                time.sleep(0.1)
            yield f"postgresql://rater@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)  # at once, clients or not
            server.wait(60)


@contextlib.contextmanager
def survey(folder: Path, *options: str) -> Iterator[tuple[str, str, subprocess.Popen]]:
    """`qrlora survey serve` on free ports: (address for raters, for the researcher, process)."""
    words = [sys.executable, "-m", "qrlora", "survey", "serve", str(folder), *options]
    words += ["--researcher-port", "0", *([] if "--port" in options else ["--port", "0"])]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"})
    try:
        assert server.stdout is not None
        addresses = [re.search(r"http\S+", server.stdout.readline()) for _ in range(2)]
        assert all(addresses), "the server did not start"
        yield addresses[0][0], addresses[1][0], server
    finally:
        if server.poll() is None:
            server.terminate()
        server.wait(60)
        server.stdout.close()


@contextlib.contextmanager
def studio(folder: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """`qrlora studio` on a free port: (address with its token, process)."""
    words = [sys.executable, "-m", "qrlora", "studio", str(folder), *([] if "--port" in options else ["--port", "0"])]
    server = subprocess.Popen([*words, *options], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        assert address.startswith("http"), "the server did not start"
        yield address, server
    finally:
        if server.poll() is None:
            server.terminate()
        server.wait(60)
        server.stdout.close()
