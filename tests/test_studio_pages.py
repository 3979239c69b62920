"""The studio's pages: who may see them, what they take, and that nothing leads out of the work folder."""

import io
import os
import re
import struct
import subprocess
import sys
import time
import zlib

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from qrlora.studio import serving
from qrlora.studio.app_state import Studio
from qrlora.studio.job_worker import training_settings
from qrlora.studio.jobs import ADAPTER, acquire_job_lock
from qrlora.studio.mixer_pages import MOST_CELLS
from qrlora.studio.serving import studio_app
from qrlora.studio.uploaded_images import Square, add_uploaded_image, square_of_upload
from qrlora.studio.work_folder import WorkFolder
from qrlora.web.security import HEADERS


class Port:
    """A listener that nobody asks for more than its port."""

    port = 8810


HOME = "http://127.0.0.1:8810"
ORIGIN = {"origin": HOME}


@pytest.fixture
def studio(tmp_path):
    return Studio(WorkFolder(tmp_path / "work"), Port.port, ["cpu"])


@pytest.fixture
def stranger(studio):
    return TestClient(studio_app(studio, Port()), base_url=HOME, follow_redirects=False)


@pytest.fixture
def page(studio, stranger):
    assert stranger.get(f"/?token={studio.access.token}").status_code == 303
    return stranger


def photo(size=(60, 40), **told):
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(file, told.pop("format", "JPEG"), **told)
    return file.getvalue()


def bomb(side):
    """A PNG file of a few bytes that says it has very many pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100_000))) + chunk(b"IEND", b"")


def post(page, studio, path, files=None, **fields):
    told = {"form_token": studio.access.form_token, **fields}
    return page.post(path, data=told, files=files, headers={"origin": str(page.base_url)})


def adapter_file(studio, title="dog", role="content", trigger="<c>", base="tiny-flux", **opening):
    """A job that has made an adapter, as far as pages look at it."""
    settings = {"train": {"role": role, "base": base, "trigger": trigger, **opening}, "crop": [], "pictures": [{}]}
    job = studio.work.create("train", title, settings, {ADAPTER: b"x" * 100, "square-0.png": photo(format="PNG")})
    facts = {"base": base, "family": "f", "role": role, "trigger": trigger, "prompt": "", "method": "qr", "rank": 4}
    job.add_event("end", result={**facts, "layers": 2, "bytes": 100})
    return job


def test_without_the_token_there_is_no_page_and_with_it_the_address_forgets_it(studio, stranger):
    for path in ("/", "/runs", "/mixer", "/adapters", "/bases", "/events", "/run/0123456789ab", "/?token=wrong"):
        assert stranger.get(path).status_code == 403
    assert stranger.get("/?token=\u00fc").status_code == 403
    assert stranger.get("/", headers={"cookie": f"{studio.access.cookie}=\u00fc".encode()}).status_code == 403
    assert stranger.post("/train", headers=ORIGIN).status_code == 403
    answer = stranger.get(f"/?token={studio.access.token}")
    assert answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    assert stranger.get("/").status_code == 200
    assert os.stat(studio.work.folder / "token").st_mode & 0o077 == 0


def test_a_form_needs_our_origin_our_cookie_and_the_word_that_our_pages_put_in(studio, page):
    word = {"form_token": studio.access.form_token}
    assert page.post("/draft", data=word).status_code == 403
    assert page.post("/draft", data=word, headers={"origin": "https://evil.example"}).status_code == 403
    assert page.post("/draft", data={}, headers=ORIGIN).status_code == 403
    assert page.post("/draft", data={"form_token": "0" * 64}, headers=ORIGIN).status_code == 403
    assert page.post("/draft", data=word, headers=ORIGIN).status_code == 204
    page.cookies.clear()
    assert page.post("/draft", data=word, headers=ORIGIN).status_code == 403


def test_every_page_has_the_strict_headers_and_no_other_host_is_answered(studio, page):
    adapter_file(studio)
    for path in ("/", "/runs", "/mixer", "/adapters", "/bases", "/none", f"/run/{studio.work.jobs()[0].id}"):
        answer = page.get(path)
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
        assert not re.search(r"<script(?![^>]*src=)|\son\w+=|\sstyle=|javascript:", answer.text)
        assert not re.search(r"(src|href|action)=\"(https?:)?//", answer.text)
        assert page.get(path, headers={"host": "evil.example:8810"}).status_code == 421


TRICKS = [
    "..",
    "%2e%2e",
    "..%2f..%2ftoken",
    "../../token",
    "/etc/passwd",
    "..\\..\\token",
    "token%00",
    "job.json",
    "lock",
]


@pytest.mark.parametrize("trick", TRICKS)
def test_no_address_leads_out_of_what_pages_show(studio, page, trick):
    job = adapter_file(studio)
    secret = studio.access.token
    for path in (f"/run/{job.id}/{trick}", f"/run/{trick}", f"/drawing/{trick}.png", f"/picture/{trick}.webp"):
        answer = page.get(path)
        assert answer.status_code in (307, 404, 422) or answer.url.path in ("/", "/runs"), path
        assert secret not in answer.text and "root:" not in answer.text
    assert page.get(f"/run/{job.id}/square-0.png").status_code == 200
    assert page.get(f"/run/{job.id}/square-1.png").status_code == 404
    assert page.get(f"/run/{job.id}/{ADAPTER}").content == b"x" * 100


def test_a_link_that_leads_out_of_the_folder_is_not_followed(studio, page, tmp_path):
    (tmp_path / "secret").write_text("secret")
    job = adapter_file(studio)
    (job.folder / ADAPTER).unlink()
    (job.folder / ADAPTER).symlink_to(tmp_path / "secret")
    (studio.work.drawings / "abc.png").symlink_to(tmp_path / "secret")
    assert page.get(f"/run/{job.id}/{ADAPTER}").status_code == 404
    assert page.get("/drawing/abc.png").status_code == 404


def test_a_picture_is_stored_upright_without_what_the_camera_wrote(studio, page):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    exif[0x010E] = "at home"
    exif.get_ifd(0x8825)[1] = "N"
    data = photo((60, 40), exif=exif)
    assert b"at home" in data
    answer = post(page, studio, "/pictures", {"files_content": ("../../dog.jpg", data)})
    assert answer.status_code == 200 and "dog.jpg, 40 × 60" in answer.text and "../" not in answer.text
    written = [path for path in studio.work.folder.rglob("*") if path.is_file()]
    assert all(b"at home" not in path.read_bytes() for path in written)
    (stored,) = studio.work.pictures.glob("*.png")
    with Image.open(stored) as image:
        assert image.size == (40, 60) and not image.getexif()


ODD_NAMES = [
    "-rf.png",
    "日本 é 😀.png",
    "é" * 120 + ".png",
    ".png",
    "/",
    "a\\b.png",
    "%2e%2e.png",
    "a'b\"c.png",
    "$x_{$.png",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_picture_may_have_any_name_and_its_run_can_be_clicked(studio, page, name):
    assert post(page, studio, "/pictures", {"files_content": (name, photo(format="PNG"))}).status_code == 200
    picture = re.search(r'name="content" value="(\w+)"', page.get("/").text)[1]
    assert post(page, studio, "/train", content=picture, base="tiny-flux", once="1").status_code == 303
    (job,) = studio.work.jobs()
    assert job.title and re.search(rf'href="/run/{job.id}"><strong>[^<]+</strong>', page.get("/runs").text)
    assert page.get(f"/run/{job.id}").status_code == 200
    (job.folder / ADAPTER).write_bytes(b"x")
    assert page.get(f"/run/{job.id}/{ADAPTER}").status_code == 200


def odd_pictures():
    image = Image.linear_gradient("L").resize((48, 32))
    frames = [Image.new("P", (48, 32), k) for k in range(3)]
    sixteen = Image.new("I;16", (48, 32), 40_000)
    for name, picture, told in (
        ("animated.gif", frames[0], {"save_all": True, "append_images": frames[1:]}),
        ("animated.webp", image, {"save_all": True, "append_images": [image.convert("RGB")]}),
        ("cmyk.jpg", image.convert("CMYK"), {}),
        ("grey.jpg", image, {}),
        ("palette.png", image.convert("P"), {"transparency": 0}),
        ("16bit.png", sixteen, {}),
        ("alpha.png", image.convert("RGBA"), {}),
        ("bits.png", image.convert("1"), {}),
    ):
        file = io.BytesIO()
        picture.save(file, {"jpg": "JPEG"}.get(name[-3:], name.rsplit(".", 1)[1].upper()), **told)
        yield pytest.param(name, file.getvalue(), id=name)


@pytest.mark.parametrize(("name", "data"), odd_pictures())
def test_every_kind_of_picture_that_browsers_show_is_stored_as_one_still_one(studio, page, name, data):
    answer = post(page, studio, "/pictures", {"files_content": (name, data)})
    assert answer.status_code == 200 and f"{name}, 48 × 32" in answer.text
    (stored,) = studio.work.pictures.glob("*.png")
    with Image.open(stored) as image:
        assert image.mode == "RGB" and image.size == (48, 32) and getattr(image, "n_frames", 1) == 1


def test_files_that_somebody_took_out_of_a_runs_folder_break_no_page(studio, page):
    content, style = adapter_file(studio), adapter_file(studio, "ink", "style", "<s>")
    mixer = f"/mixer?content={content.id}&style={style.id}"
    for name in ("square-0.png", ADAPTER, "lock"):
        (content.folder / name).unlink()
        for path in ("/runs", "/adapters", mixer, f"/run/{content.id}"):
            assert page.get(path).status_code == 200, (name, path)
    assert page.get(f"/run/{content.id}/{ADAPTER}").status_code == 404
    (content.folder / "events.jsonl").unlink()
    for path in ("/runs", "/adapters", mixer):
        assert page.get(path).status_code == 200
    assert page.get(f"/run/{content.id}").status_code == 404
    waiting = studio.work.create("check", "dog", {"adapters": [style.id]})
    (waiting.folder / "lock").unlink()
    waiting.stop()
    assert waiting.state == "stopped"
    (waiting.folder / "lock").unlink()
    waiting.requeue()
    os.close(acquire_job_lock(waiting))


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("a.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n", "no PNG, JPEG"),
        ("a.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no PNG, JPEG"),
        ("a.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "a.png"),
        ("a.jpg", photo()[:300], "a.jpg is damaged"),
        ("a.png", photo((8, 8), format="PNG"), "at least 16 x 16"),
        ("big.png", b"\x89PNG\r\n\x1a\n" + bytes(32 * 1024**2), "larger than 32 MB"),
        ("bomb.png", bomb(30_000), "bomb.png is too large"),
    ],
)
def test_what_is_no_picture_is_refused_by_its_content(studio, page, name, data, why):
    answer = post(page, studio, "/pictures", {"files_content": (name, data)})
    assert answer.status_code == 422 and why in answer.text and str(studio.work.folder) not in answer.text
    assert list(studio.work.pictures.iterdir()) == []


def test_only_safetensors_are_taken_as_adapters(studio, page):
    for name, data in (
        ("a.pt", b"\x80\x02}q\0."),
        ("a.safetensors", b"\x80\x02}q\0....."),
        ("a.bin", b"\2" + b"\0" * 7 + b"{}"),
    ):
        answer = post(page, studio, "/adapters", {"file": (name, data)})
        assert answer.status_code == 422 and "no safetensors file" in answer.text
    assert studio.work.jobs() == []
    good = (2).to_bytes(8, "little") + b"{}"
    assert post(page, studio, "/adapters", {"file": ("../a.safetensors", good)}).status_code == 303
    (job,) = studio.work.jobs()
    assert job.kind == "import" and job.title == "a" and job.adapter.read_bytes() == good


def test_a_form_without_files_is_small_and_an_upload_has_its_limit(studio, page):
    long = {"content-length": str(2 * 1024**2), **ORIGIN}
    assert page.post("/draft", headers=long).status_code == 413
    assert page.post("/pictures", headers={**ORIGIN, "content-length": str(257 * 1024**2)}).status_code == 413


def test_what_people_write_is_text_on_every_page(studio, page):
    evil = "<script>alert(1)</script>"
    post(page, studio, "/draft", shows=evil, more_steps=evil)
    job = adapter_file(studio, title=evil, trigger=evil)
    post(page, studio, "/pictures", {"files_content": (f"{evil}<svg onload=x>.png", photo(format="PNG"))})
    download = page.get(f"/run/{job.id}/{ADAPTER}").headers["content-disposition"]
    assert "<" not in download and "\n" not in download
    for path in ("/", "/runs", "/adapters", f"/run/{job.id}", f"/mixer?prompt={evil}&content={job.id}"):
        text = page.get(path).text
        assert evil not in text and "<svg onload" not in text and "&lt;script&gt;" in text


def test_all_that_a_server_writes_lies_in_the_work_folder(tmp_path, monkeypatch):
    """Python tells of every file that is opened: those for writing are within the folder, and so is an upload that is
    too large for memory while it arrives."""
    written, on, folder = [], [True], tmp_path / "work"

    def hook(event, told):
        if (
            on[0]
            and event == "open"
            and isinstance(told[0], str | os.PathLike)
            and (told[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        ):
            written.append(os.path.realpath(told[0]))

    def serve_requests(apps, on_ready, on_stop):
        ((app, listener),) = apps
        page = TestClient(app, base_url=listener.address, headers={"origin": listener.address})
        studio = Studio(WorkFolder(folder), listener.port, ["cpu"])
        page.get(f"/?token={studio.access.token}")
        noise = io.BytesIO()
        Image.effect_noise((1200, 1200), 90).save(noise, "PNG")
        assert len(noise.getvalue()) > 1024**2
        post(page, studio, "/pictures", {"files_content": ("../../../tmp/dog.png", noise.getvalue())})
        picture = re.search(r'name="content" value="(\w+)"', page.get("/").text)[1]
        post(page, studio, "/train", content=picture, base="nowhere", once="1")
        post(page, studio, "/bases", name="owner/name")
        post(page, studio, "/train", content=picture, base="owner/name", once="2")
        (job,) = [x for x in studio.work.jobs() if x.kind == "train"]
        post(page, studio, f"/run/{job.id}/stop", at_once="yes")
        on_stop()

    sys.addaudithook(hook)
    monkeypatch.setattr(serving, "serve", serve_requests)
    serving.serve_studio(folder, port=0)
    on[0] = False
    assert len(written) > 5
    assert [x for x in written if not x.startswith(os.path.realpath(folder)) and x != os.devnull] == []


def test_a_flood_of_requests_is_refused_and_a_page_with_every_picture_is_not(studio, monkeypatch):
    assert serving.RATE[1] >= 10 * MOST_CELLS
    monkeypatch.setattr(serving, "RATE", (0.001, 3))
    stranger = TestClient(studio_app(studio, Port()), base_url=HOME)
    answers = [stranger.get("/static/studio.css") for _ in range(5)]
    assert [x.status_code for x in answers] == [200, 200, 200, 429, 429]
    assert "Too many requests" in answers[-1].text and answers[-1].headers["x-frame-options"] == "DENY"


def test_a_full_disk_is_said_on_the_page_and_nothing_is_left_half_made(studio, page, small_disk):
    noise = io.BytesIO()
    Image.effect_noise((300, 300), 90).save(noise, "PNG")
    answer = post(page, studio, "/pictures", {"files_content": ("dog.png", noise.getvalue())})
    assert answer.status_code == 507 and "could not be stored" in answer.text and "File too large" in answer.text
    assert list(studio.work.pictures.iterdir()) == []
    big = (2).to_bytes(8, "little") + b"{}" + bytes(100_000)
    assert post(page, studio, "/adapters", {"file": ("a.safetensors", big)}).status_code == 507
    with pytest.raises(OSError, match="File too large"):
        studio.work.create("train", "dog", {}, {"picture-0.png": noise.getvalue()})
    assert list(studio.work.jobs_folder.iterdir()) == []
    assert page.get("/").status_code == 200


def test_the_square_that_is_shown_as_learnt_is_the_one_that_was_drawn(studio):
    image = Image.new("RGB", (50, 30), "blue")
    image.paste("red", (30, 5, 50, 25))
    file = io.BytesIO()
    image.save(file, "PNG")
    picture = add_uploaded_image(studio.work, io.BytesIO(file.getvalue()), "a.png")
    with Image.open(io.BytesIO(square_of_upload(studio.work, picture, Square(30, 5, 20)))) as square:
        assert square.getcolors() == [(square.width * square.height, (255, 0, 0))]
    assert Square.middle(50, 30) == Square(10, 0, 30)
    for wrong in (Square(31, 5, 20), Square(0, 0, 31), Square(0, 0, 15)):
        with pytest.raises(ValueError, match=r"^a.png: "):
            square_of_upload(studio.work, picture, wrong)


def test_two_pictures_become_two_runs_once_and_a_reload_loses_nothing_before(studio, page):
    post(
        page, studio, "/pictures", {"files_content": ("dog.jpg", photo()), "files_style": ("ink.jpg", photo((40, 60)))}
    )
    text = page.get("/").text
    pictures = {role: re.search(rf'name="{role}" value="(\w+)"', text)[1] for role in ("content", "style")}
    sent = {**pictures, "base": "tiny-flux", "more_steps": "7", "once": "1", f"content-{pictures['content']}-x": "5"}
    sent |= {f"content-{pictures['content']}-side": "30"}
    answer = post(page, studio, "/train", **sent)
    assert answer.status_code == 422 and "Say what the style picture shows" in answer.text
    post(page, studio, "/draft", **sent, shows="cat")
    text = page.get("/").text
    assert 'value="cat"' in text and 'name="more_steps" value="7"' in text
    assert re.search(r'data-part="x" min="0" max="60" value="5"', text)
    for _ in range(2):  # a double click
        assert post(page, studio, "/train", **sent, shows="cat").status_code == 303
    style, content = studio.work.jobs()
    assert content.settings["train"] == {
        "role": "content",
        "base": "tiny-flux",
        "trigger": "<c>",
        "preview_every": 10,
        "steps": 7,
    }
    assert style.settings["train"]["prompt"] == "a cat in <s> style"
    for job, size in ((content, (60, 40)), (style, (40, 60))):
        with Image.open(job.folder / "picture-0.png") as image:
            assert image.size == size
    assert training_settings(content)["crop"] == ((5, 0, 30),) and "crop" not in training_settings(style)
    assert "dog.jpg" not in page.get("/").text  # the next two
    assert post(page, studio, f"/again/{content.id}").status_code == 303
    text = page.get("/").text
    assert "dog.jpg" in text and 'name="more_steps" value="7"' in text and 'max="60" value="5"' in text


def test_why_nothing_can_be_started_is_said_on_the_page_until_it_is_over(studio, page, small_disk):
    job = studio.work.create("check", "dog", {"adapters": []})
    events = job.folder / "events.jsonl"
    events.write_bytes(events.read_bytes().ljust(65535) + b"\n")  # the next one does not fit on the disk
    studio.queue.start()
    for _ in range(100):
        if studio.queue.problem:
            break
        time.sleep(0.05)
    text = page.get("/runs").text
    studio.work.delete(job)
    for _ in range(100):
        if not studio.queue.problem:
            break
        time.sleep(0.05)
    studio.queue.close()
    assert "Nothing can be started" in text and "File too large" in text
    assert "Nothing can be started" not in page.get("/runs").text


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"more_steps": "0"}, "steps must be 1 or more"),
        ({"more_steps": "many"}, "steps must be a whole number"),
        ({"base": "/etc"}, "There is no base"),
        ({"more_learning_rate": "-1"}, "learning_rate must be a positive number"),
    ],
)
def test_a_setting_that_cannot_be_is_said_before_a_run(studio, page, wrong, why):
    post(page, studio, "/pictures", {"files_content": ("dog.jpg", photo())})
    picture = re.search(r'name="content" value="(\w+)"', page.get("/").text)[1]
    answer = post(page, studio, "/train", content=picture, once="1", **{"base": "tiny-flux", **wrong})
    assert answer.status_code == 422 and why in answer.text and studio.work.jobs() == []


def test_what_a_training_takes_is_counted_for_the_last_settings_alone_and_remembered(studio, page):
    def estimate(**fields):
        assert post(page, studio, "/estimate", base="tiny-flux", **fields).status_code == 200
        return [(x.settings["settings"], x.state) for x in studio.work.jobs() if x.kind == "estimate"]

    post(page, studio, "/pictures", {"files_content": ("dog.jpg", photo())})
    picture = re.search(r'name="content" value="(\w+)"', page.get("/").text)[1]
    assert estimate(content=picture) == [({}, "waiting")]
    studio.work.jobs()[0].add_event("failed", text="no memory")
    assert estimate(content=picture, more_rank="8") == [({"rank": 8}, "waiting")]
    assert estimate(content=picture, more_rank="9") == [({"rank": 9}, "waiting")]
    facts = {
        "rows": [{"chosen": True, "here": True, "need": 1.0, "weights": "float32", "recomputed": False, "card": 8}]
    }
    facts |= {"device": "cpu", "free": 9.0, "resolution": 64, "rank": 9, "file": 1.0}
    studio.work.jobs()[0].add_event("end", result=facts)
    assert estimate(content=picture, more_rank="7") == [({"rank": 7}, "waiting"), ({"rank": 9}, "done")]
    assert "Fits here." in post(page, studio, "/estimate", base="tiny-flux", content=picture, more_rank="9").text
    assert studio.work.in_bin() == []


@pytest.mark.parametrize("name", ["/etc/passwd", "../x/y", "a/..", "name", "https://a/b", "a/b/c", "-a/../b"])
def test_no_base_of_this_machine_is_chosen_by_a_page(studio, page, name):
    assert post(page, studio, "/bases", name=name).status_code == 422
    assert post(page, studio, "/bases", name="owner/name@main").status_code == 303
    assert "owner/name@main" in page.get("/").text


def test_the_mixer_asks_for_the_pictures_of_its_address_and_shows_what_is_drawn(studio, page):
    content, style = adapter_file(studio), adapter_file(studio, "ink", "style", "<s>")
    text = page.get("/mixer").text
    assert "a &lt;c&gt; in &lt;s&gt; style" in text and studio.drawings._waiting == {}
    sent = {
        "content": content.id,
        "style": style.id,
        "prompt": "a <c> in <s> style",
        "seed": "3",
        "c": "0.8",
        "s": "1.1",
    }
    answer = post(page, studio, "/mixer/draw", **sent, grid="yes", rows="0, 1", columns="0.5")
    assert "drawing …" in answer.text and answer.headers["hx-replace-url"].startswith("/mixer?content=")
    (first, wanted), *cells = studio.drawings._waiting.items()
    assert wanted["adapters"] == [[content.id, 0.8], [style.id, 1.1]] and wanted["seed"] == 3
    assert [x["adapters"][0][1] for _, x in cells] == [0.0, 1.0]
    (studio.work.drawings / f"{first}.png").write_bytes(photo(format="PNG"))
    text = page.get(answer.headers["hx-replace-url"]).text
    assert f"/drawing/{first}.png" in text and "qrlora generate" in text
    for wrong in (
        {"c": "much"},
        {"s": "nan"},
        {"seed": "-1"},
        {"grid": "yes", "rows": "1,2,3,4,5,6,7,8", "columns": "1,2,3,4,5,6,7"},
    ):
        assert 'role="alert"' in post(page, studio, "/mixer/draw", **{**sent, **wrong}).text


def test_the_mixer_opens_with_the_newest_subject_and_style_and_a_merge_has_both_words(studio, page):
    content, style = adapter_file(studio), adapter_file(studio, "ink", "style", "<s>")
    merged = adapter_file(studio, "both", "merged", "<c>, <s>")
    text = page.get("/mixer").text
    chosen = re.findall(r'<option value="(\w+)" selected', text)
    assert chosen == [content.id, style.id] and 'value="a &lt;c&gt; in &lt;s&gt; style"' in text
    assert 'value="a &lt;c&gt; in &lt;s&gt; style"' in page.get(f"/mixer?content={merged.id}&style=").text
    assert 'value="a &lt;c&gt;"' in page.get(f"/mixer?content={content.id}&style=").text


def test_a_base_that_only_a_file_names_is_neither_opened_nor_fetched(studio, page):
    for base in ("/etc", "owner/name", ""):
        job = adapter_file(studio, "stranger", base=base)
        answer = post(page, studio, "/mixer/draw", content=job.id, style="", prompt="a <c>", seed="0", c="1", s="1")
        assert 'role="alert"' in answer.text and "add it under Bases" in answer.text
    assert studio.drawings._waiting == {}


@pytest.mark.parametrize("named", ["sd_xl_base_1.0.safetensors", "", "tiny-flux"])
def test_the_mixer_opens_the_base_as_the_adapter_that_was_trained_here_whichever_comes_first(studio, page, named):
    """A file of kohya names its base by the base's file (ss_sd_model_name); none that is imported has settings."""
    trained = adapter_file(studio, "ink", "style", "<s>", dtype="bfloat16", offload=True)
    imported = studio.work.create("import", "cat", {}, {ADAPTER: b"x" * 100})
    imported.add_event("end", result={**trained.facts, "base": named, "role": "", "trigger": ""})
    for content, style in ((imported, trained), (trained, imported)):
        sent = {"content": content.id, "style": style.id, "prompt": "a cat", "seed": "0", "c": "1", "s": "1"}
        assert 'role="alert"' not in post(page, studio, "/mixer/draw", **sent).text
        (wanted,) = studio.drawings._waiting.values()
        assert (wanted["base"], wanted["opening"]) == ("tiny-flux", {"dtype": "bfloat16", "offload": True})


def test_a_mix_without_a_known_base_is_refused_with_the_adapter_that_names_one(studio, page):
    silent, named = (
        adapter_file(studio, "silent", base=""),
        adapter_file(studio, "stranger", "style", base="owner/name"),
    )
    sent = {"content": silent.id, "style": named.id, "prompt": "a cat", "seed": "0", "c": "1", "s": "1"}
    assert "stranger was trained on owner/name" in post(page, studio, "/mixer/draw", **sent).text


def test_the_server_loads_no_torch():
    """So that the first page is there at once."""
    script = """
import sys, tempfile, io
from pathlib import Path
from PIL import Image
from test_studio_pages import *
with tempfile.TemporaryDirectory() as place:
    studio = Studio(WorkFolder(Path(place)), Port.port, ["cpu"])
    page = TestClient(studio_app(studio, Port()), base_url=HOME)
    page.get(f"/?token={studio.access.token}")
    adapter_file(studio)
    assert post(page, studio, "/pictures", {"files_content": ("dog.jpg", photo())}).status_code == 200
    for path in ("/", "/runs", "/mixer", "/adapters", "/bases", f"/run/{studio.work.jobs()[0].id}"):
        assert page.get(path).status_code == 200
heavy = {"torch", "diffusers", "transformers", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""
    told = {"cwd": os.path.dirname(__file__), "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", script], **told)
    assert done.returncode == 0, done.stderr
