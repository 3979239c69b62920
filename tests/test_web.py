"""What guards every page, and where a server listens."""

import asyncio
import socket

import pytest
from fastapi import Request
from fastapi.testclient import TestClient

from qrlora.web.pages import FOLDER, Pages, application
from qrlora.web.security import HEADERS, Guard, RateLimit, hosts_of
from qrlora.web.serving import listen

HOME = "http://127.0.0.1:8800"


def client(limits=None, largest=1000):
    """A page that takes a form, behind the guard."""

    def refuse(status, reason):
        return reason.encode()

    app = application(Pages([]), refuse)

    @app.post("/form")
    async def form(request: Request):
        return {"bytes": len(await request.body())}

    @app.get("/page")
    def page():
        return "a page"

    guard = Guard(app, hosts_of(["127.0.0.1", "::1"], 8800), limits or {}, refuse, largest)
    return TestClient(guard, base_url=HOME)


def test_every_answer_has_the_strict_headers_errors_and_refusals_too():
    page = client()
    for answer in (page.get("/page"), page.get("/none"), page.post("/form"), page.get("/static/style.css")):
        for name, value in HEADERS.items():
            assert answer.headers[name] == value
    assert page.get("/page").headers["cache-control"] == "no-store"
    assert "unsafe" not in HEADERS["Content-Security-Policy"]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1:8801", "127.0.0.1", "localhost.evil.example:8800", ""])
def test_another_host_is_refused_as_after_dns_rebinding(host):
    answer = client().get("/page", headers={"host": host})
    assert answer.status_code == 421 and answer.text == "host"


def test_a_form_from_another_site_is_refused_and_so_is_one_of_unknown_origin():
    page = client()
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": HOME, "sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://127.0.0.1:9000"},
        {},
    ):
        assert page.post("/form", headers=headers).status_code == 403
    assert page.post("/form", headers={"origin": HOME}).status_code == 200
    assert page.post("/form", headers={"sec-fetch-site": "same-origin"}).status_code == 200
    assert page.put("/form", headers={"origin": HOME}).status_code == 405


def test_a_large_body_is_refused_whether_it_tells_its_length_or_not():
    page = client(largest=1000)
    assert page.post("/form", content=b"x" * 1000, headers={"origin": HOME}).json() == {"bytes": 1000}
    assert page.post("/form", content=b"x" * 1001, headers={"origin": HOME}).status_code == 413
    assert page.post("/form", headers={"origin": HOME, "content-length": "-1"}).status_code == 413
    assert page.post("/form", content=(b"x" for _ in range(3)), headers={"origin": HOME}).status_code == 411


def test_too_many_requests_are_refused_and_one_address_does_not_stop_another():
    limit = RateLimit(rate=0.001, burst=3)
    home, neighbour = RateLimit(0, 2), ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "2001:db8:0:1::3", "2001:db8:0:2::1")
    assert [home.allows(x) for x in neighbour] == [True, True, False, True], "of IPv6 a household has 64 bits"
    assert [limit.allows("10.0.0.1") for _ in range(4)] == [True, True, True, False]
    assert limit.allows("10.0.0.2")
    assert b"10.0.0.1" not in repr(vars(limit)).encode()
    page = client({"/page": RateLimit(0.001, 2), "": RateLimit(0.001, 100)})
    assert [page.get("/page").status_code for _ in range(3)] == [200, 200, 429]
    assert page.get("/static/style.css").status_code == 200


@pytest.mark.parametrize(
    "name",
    [
        "../pages.py",
        "..%2fpages.py",
        "%2e%2e/pages.py",
        "/etc/passwd",
        "style.css%00",
        "..\\pages.py",
        "x/../style.css",
    ],
)
def test_no_path_from_outside_leads_to_a_file(name):
    page = client()
    assert page.get("/static/style.css").status_code == 200
    answer = page.get(f"/static/{name}")
    assert answer.status_code == 404 or answer.text == page.get("/static/style.css").text  # the client's own "x/.."
    assert "jinja2" not in answer.text and "root:" not in answer.text


def test_the_vendored_script_has_its_licence_beside_it():
    licence = (FOLDER / "static" / "htmx.LICENSE.txt").read_text(encoding="utf-8")
    assert "Zero-Clause BSD" in licence and "4.0.1" in licence
    assert "4.0.1" in (FOLDER / "static" / "htmx.min.js").read_text(encoding="utf-8")


def test_a_server_listens_on_loopback_and_beyond_only_behind_tls():
    for address in ("127.0.0.1", "::1"):
        with listen(0, address).socket as taken:
            assert taken.getsockname()[0] == address
    with pytest.raises(ValueError, match="without encryption"):
        listen(0, "0.0.0.0")
    with pytest.raises(ValueError, match="must begin with https://"):
        listen(0, public="http://ratings.example.org")
    with pytest.raises(ValueError, match="no IP address"):
        listen(0, "everywhere")
    with listen(0, "0.0.0.0", "https://ratings.example.org").socket as taken:
        assert taken.getsockname()[0] == "0.0.0.0"


def test_an_answers_body_does_not_wait_for_its_head_to_be_acknowledged():
    async def no_delay():
        accepted = asyncio.get_running_loop().create_future()
        listener = listen(0)
        with listener.socket:
            server = await asyncio.start_server(lambda _, writer: accepted.set_result(writer), sock=listener.socket)
            _, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            there = (await accepted).get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            for end in (writer, await accepted, server):
                end.close()
            return there

    assert asyncio.run(no_delay())


def test_a_port_that_is_taken_is_told():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(OSError, match="is taken: give another one"):
            listen(other.getsockname()[1])


def test_a_browser_that_leaves_while_it_sends_is_no_error_of_the_server():
    """Such as by a reload during an upload."""
    app, sent = application(Pages([]), lambda status, reason: b""), []

    @app.post("/")
    async def read(request: Request) -> None:
        await request.form()

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    headers = [(b"content-type", b"multipart/form-data; boundary=x"), (b"content-length", b"99")]
    scope = {"type": "http", "method": "POST", "path": "/", "raw_path": b"/", "query_string": b"", "headers": headers}
    scope |= {"http_version": "1.1", "scheme": "http", "server": ("a", 80), "client": ("b", 1), "root_path": ""}
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 400
