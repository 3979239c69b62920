"""Bases and vision networks by hub names: asked for once where nothing answers, and waited for where it is slow."""

import contextlib
import http.server
import shutil
import threading

import huggingface_hub
import pytest

import pico
from qrlora.evaluation import open_encoder
from qrlora.families import hub_download, open_base
from test_families import assert_same_base, write_single_file


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """(endpoint, repositories in the cache) -> the hub's client asks there; nothing may wait to ask again."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def no_second_request(seconds):
        raise AssertionError(f"{seconds} s until the same is asked again")

    def use(endpoint, **repositories):
        for name, folder in repositories.items():
            there = tmp_path / "hub" / f"models--somebody--{name}"
            shutil.copytree(folder, there / "snapshots" / "a")
            (there / "refs").mkdir()
            (there / "refs" / "main").write_text("a")
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("time.sleep", no_second_request)

    return use


@contextlib.contextmanager
def hub_on_loopback(status=404, seconds=0.0):
    """The address of a server that has nothing, and says so after some seconds."""
    asked = []

    class Server(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            asked.append(self.path)
            threading.Event().wait(seconds)
            self.send_response(status)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


@pytest.mark.parametrize("what", ["hub name", "single file", "vision network"])
def test_where_nothing_answers_the_hub_is_asked_once(hub, tmp_path, what):
    hub("http://127.0.0.1:9")  # the port "discard", where nobody listens
    with pytest.raises(OSError, match="the hub cannot be reached"):
        if what == "vision network":
            open_encoder("dino-vits16", "cpu")
        else:
            open_base("nobody/model" if what == "hub name" else write_single_file("sdxl", tmp_path), "cpu")
    assert not huggingface_hub.constants.HF_HUB_OFFLINE  # the network may come back while a studio runs


def test_what_was_fetched_before_opens_where_nothing_answers(hub):
    hub("http://127.0.0.1:9", model=pico.folder())
    assert_same_base(*(open_base(name, "cpu") for name in ("somebody/model", pico.folder())))


def test_a_slow_hub_is_waited_for(hub, monkeypatch):
    """One that answers later than the limit of one request is there: the client's own patience decides."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.05)
    with hub_on_loopback(seconds=0.3) as (endpoint, asked):
        hub(endpoint)
        with hub_download.hub_or_cache():
            assert not huggingface_hub.constants.HF_HUB_OFFLINE and len(asked) == 1


def test_a_name_that_the_hub_does_not_have_is_said_to_be_missing_there(hub):
    with hub_on_loopback() as (endpoint, asked):
        hub(endpoint)
        with pytest.raises(OSError, match="not on the hub, or private"):
            open_base("nobody/model", "cpu")
    assert len(asked) > 1
