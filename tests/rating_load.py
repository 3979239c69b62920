"""Many raters at once, and a server that is killed: python tests/rating_load.py --raters 200 --thinking 2 8.

A study of 20 answers a rater is served by `qrlora survey serve` in a process of its own, on SQLite and on a PostgreSQL
server that is started for it. Each rater reads the first page, consents, and answers page after page, over a connection
of their own; where one breaks, or the server says "too many", they send the same again. All of it is on loopback,
bounded in count and time.
Then the database is compared with what the raters were told: every acknowledged answer must be there once, with the
value that was sent; no sheet may have two raters. With --kill the server gets SIGKILL midway, and is started again.
With --cores 1 raters, server and database share one core, so that a figure says little of how busy the others are.
"""

import argparse
import asyncio
import contextlib
import os
import random
import re
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from urllib.parse import urlencode

import servers
from qrlora.survey.rater_store import Study

sys.path.append(str(Path(__file__).parents[1] / "testing"))
import ratings  # noqa: E402

PATIENCE = 120
"""Seconds in which a rater tries one request again."""


@dataclass
class Raters:
    """What happened to all raters of a run."""

    address: str
    port: int
    thinking: tuple[float, float]
    pictures: bool
    seconds: list[float] = field(default_factory=list)
    """Of every request that was answered, pictures apart."""
    told: dict[tuple[str, int, str], int] = field(default_factory=dict)
    """{(cookie, page, question): value} of every answer that was acknowledged."""
    again: int = 0
    """Requests that were sent once more."""


async def exchange(reader, writer, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """One request over a connection that stays open: (status, headers, body)."""
    writer.write(request)
    await writer.drain()
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return int(head[0].split()[1]), headers, body


class Client:
    """A rater's browser: one connection, one cookie."""

    def __init__(self, raters: Raters):
        self.raters, self.cookie, self.link = raters, "", None

    async def send(self, path: str, fields: dict[str, str] | None = None, counted: bool = True):
        """GET, or POST of a form, until it is answered; (status, headers, body)."""
        body = urlencode(fields).encode() if fields is not None else b""
        lines = [f"{'POST' if fields is not None else 'GET'} {path} HTTP/1.1", f"Host: {self.raters.address[7:]}"]
        lines += [f"Origin: {self.raters.address}", f"Cookie: {self.cookie}"]
        if fields is not None:
            lines += ["Content-Type: application/x-www-form-urlencoded", f"Content-Length: {len(body)}"]
        request = "\r\n".join([*lines, "", ""]).encode() + body
        begun = time.monotonic()
        while time.monotonic() < begun + PATIENCE:
            try:
                if self.link is None:
                    self.link = await asyncio.open_connection("127.0.0.1", self.raters.port)
                answer = await asyncio.wait_for(exchange(*self.link, request), PATIENCE)
                if answer[0] in (429, 500, 503):
                    raise ConnectionError(answer[0])
                if counted:
                    self.raters.seconds.append(time.monotonic() - begun)
                return answer
            except (OSError, asyncio.IncompleteReadError, TimeoutError):
                self.raters.again += 1
                if self.link is not None:
                    self.link[1].close()
                self.link = None
                await asyncio.sleep(random.uniform(0.1, 0.5))
        raise TimeoutError(f"{path} was not answered in {PATIENCE} s")

    async def think(self) -> None:
        await asyncio.sleep(random.uniform(*self.raters.thinking))

    async def rate(self) -> None:
        """Read the first page, consent, tell nothing about oneself, and answer every page."""
        await self.send("/")
        await self.think()
        _, headers, _ = await self.send("/begin", {"consent": "yes", "source": "link"})
        self.cookie = headers["set-cookie"].split(";")[0]
        await self.send(headers["location"])
        await self.think()
        _, headers, _ = await self.send(headers["location"], {"age": "", "experience": ""})
        path, seen = headers["location"], set()
        while True:
            status, headers, body = await self.send(path)
            while status == 303:
                path = headers["location"]
                status, headers, body = await self.send(path)
            if path == "/thanks":
                return
            page = body.decode()
            if self.raters.pictures:
                for picture in set(re.findall(r"/picture/\w+\.webp", page)) - seen:
                    seen.add(picture)
                    assert (await self.send(picture, counted=False))[0] == 200
            await self.think()
            names = set(re.findall(r'(?:type="radio"|class="answer[^"]*") name="(\w+)"', page))
            pairs = "stage pairs" in page
            values = {name: random.choice((-1, 0, 1) if pairs else range(6)) for name in names}
            mark = re.search(r'name="shown" value="([^"]+)"', page)[1]
            place = int(re.search(r'action="/item/(\d+)"', page)[1])
            status, headers, _ = await self.send(
                f"/item/{place}", {"shown": mark, **{k: str(v) for k, v in values.items()}}
            )
            assert status == 303, status
            self.raters.told |= {(self.cookie, place, name): value for name, value in values.items()}
            path = headers["location"]


def faults(study: Study, raters: Raters) -> list[str]:
    """What differs between what the raters were told and what is stored."""
    stored: Counter = Counter()
    last: dict[tuple[str, int, str], int] = {}
    rows, answers = study.raters_and_answers()
    sheets = {row["id"]: study.sheets[row["sheet"]] for row in rows}
    places = {(who, entry.item): (k, entry) for who, sheet in sheets.items() for k, entry in enumerate(sheet, 1)}
    for x in answers:
        place, entry = places[x["rater"], x["item"]]
        key = (x["rater"], place, x["question"])
        stored[key] += 1
        last[key] = -x["value"] if entry.flipped else x["value"]
    told = {}
    known = {}
    for (cookie, place, question), value in raters.told.items():
        if cookie not in known:
            known[cookie] = getattr(study.rater_of_token(cookie.split("=")[1]), "id", "")
        told[known[cookie], place, question] = value
    lost = [key for key in told if key not in last]
    found = [f"{len(lost)} acknowledged answers are lost"] if lost else []
    other = [key for key, value in told.items() if last.get(key, value) != value]
    found += [f"{len(other)} answers have another value"] if other else []
    twice = [key for key, count in stored.items() if count > 1]
    found += [f"{len(twice)} answers are there twice"] if twice else []
    shared = [sheet for sheet, count in Counter(row["sheet"] for row in rows).items() if count > 1]
    return found + ([f"{len(shared)} sheets have two raters"] if shared else [])


async def rate(raters: Raters, count: int) -> None:
    """All raters at once; the first fault of one ends the run."""
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(Client(raters).rate())


@contextlib.contextmanager
def served(folder: Path, url: str, raters: Raters, kill: int) -> Iterator[None]:
    """A server; it gets SIGKILL once so many answers are acknowledged (0: never), and is started again."""
    options = ["--port", str(raters.port), "--per-address", "100000", *(["--database", url] if url else [])]
    ready, done = threading.Event(), threading.Event()

    def live() -> None:
        with servers.survey(folder, *options) as (*_, server):
            ready.set()
            while not done.wait(0.01) and not (kill and len(raters.told) >= kill):
                pass
            if not done.is_set():
                server.send_signal(signal.SIGKILL)
                server.wait()
        if not done.is_set():
            with servers.survey(folder, *options):
                done.wait()

    thread = threading.Thread(target=live)
    thread.start()
    ready.wait(60)
    try:
        yield
    finally:
        done.set()
        thread.join()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def run(
    folder: Path, url: str, count: int, thinking: tuple[float, float], pictures: bool, kill: int = 0
) -> tuple[Raters, list[str], float, float]:
    """(what happened, what is wrong, seconds, of which the server computed) of one run against a study that nobody has
    begun."""
    port = free_port()
    raters = Raters(f"http://127.0.0.1:{port}", port, thinking, pictures)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with served(folder, url, raters, kill):
        begun = time.monotonic()
        asyncio.run(rate(raters, count))
        took = time.monotonic() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    computed = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return raters, faults(Study(folder, url), raters), took, computed


def tell(what: str, raters: Raters, wrong: list[str], took: float, computed: float) -> None:
    """The figures of a run, in one line."""
    hundredths = quantiles(raters.seconds, n=100)
    print(
        f"{what}: {len(raters.told)} answers acknowledged in {took:.0f} s; "
        f"{len(raters.seconds) / took:.0f} requests/s, "
        f"median {median(raters.seconds):.3f} s, "
        f"99 % under {hundredths[98]:.2f} s, all under {max(raters.seconds):.2f}; "
        f"the server computed for {computed:.1f} s, its start included; "
        f"{raters.again} sent again; {'; '.join(wrong) or 'none lost, none doubled, a sheet for each'}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raters", type=int, default=200)
    parser.add_argument("--thinking", type=float, nargs=2, default=(2, 8), help="seconds before each answer")
    parser.add_argument("--kill", type=int, default=0, help="acknowledged answers after which the server is killed")
    parser.add_argument("--pictures", action="store_true", help="fetch every picture once, as a browser does")
    parser.add_argument("--databases", default="sqlite,postgresql")
    parser.add_argument("--cores", type=int, default=0, help="that all of it shares; 0: all there are")
    asked = parser.parse_args()
    if asked.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: asked.cores])
    wrong = []
    for database in asked.databases.split(","):
        with contextlib.ExitStack() as stack:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            url = stack.enter_context(servers.postgres()) if database == "postgresql" else ""
            folder = ratings.folder(place, forms=["pairs"], raters=asked.raters, pairs=6)
            text = (folder / "plan.toml").read_text()
            for name, value in {"comparisons": 6, "checks": 8, "repeats": 5}.items():  # with the practice 20 pages
                text = re.sub(rf"(?m)^{name} = \d+", f"{name} = {value}", text)
            (folder / "plan.toml").write_text(text)
            found = run(folder, url, asked.raters, tuple(asked.thinking), asked.pictures, asked.kill)
            tell(f"{database}, {asked.raters} raters, {asked.thinking[0]:g}-{asked.thinking[1]:g} s", *found)
            wrong += found[1]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
