"""The studio in a real browser, on a pico base: Debian's chromium. Skipped where there is none; CI installs it."""

import time

import pytest
from PIL import Image

import pico
import qrlora
import servers
from qrlora.studio.job_worker import training_settings
from qrlora.studio.work_folder import WorkFolder

pytestmark = [
    pytest.mark.skipif(servers.CHROMIUM is None, reason="no chromium here"),
    pytest.mark.processes,
]
IMAGE = "() => document.querySelector('.stage img')?.getAttribute('src')"


@pytest.fixture(scope="module")
def base():
    return str(pico.folder("flux"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A wide and a high picture."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, size in (("dog", (80, 48)), ("ink", (48, 80))):
        Image.effect_noise(size, 90).convert("RGB").save(folder / f"{name}.png")
    return {"content": folder / "dog.png", "style": folder / "ink.png"}


@pytest.fixture
def window():
    """A browser page, which at the end has asked no other host, and has had nothing to complain of."""
    with servers.chromium() as browser:
        page = browser.new_page()
        page.wrong = servers.watch(page, ("http://127.0.0.1:", "blob:"))
        yield page
    assert page.wrong == []


def train(page, pictures, base, **more):
    """Choose pictures and press the button."""
    for role, path in pictures.items():
        page.set_input_files(f"input[name=files_{role}]", path)
        page.wait_for_selector(f"[aria-labelledby=of-{role}] .crop")
    page.select_option("#base", base)
    page.click("summary:text-is('More')")
    for name, value in more.items():
        page.fill(f"#more_{name}", str(value))
    if "style" in pictures:
        page.fill("input[name=shows]", "cat")
        servers.check_accessible(page)
    page.click("button:text-is('Train')")
    page.wait_for_url("**/runs")


def test_from_two_pictures_to_a_mixed_one_though_page_and_server_go_down_and_a_run_is_stopped(
    window, base, pictures, tmp_path
):
    """The run that was stopped and continued has the bytes of an unbroken one."""
    page, work = window, WorkFolder(tmp_path / "work")
    options = ("--base", base, "--devices", "cpu")
    with servers.studio(work.folder, *options) as (address, server):
        page.goto(address)
        assert "token" not in page.url
        train(page, pictures, base, steps=120, rank=4, preview_every=60)
        page.click(".row a:has-text('dog')")
        page.wait_for_function("() => document.querySelector('progress')?.value > 3", timeout=60_000)
        before = page.evaluate("() => document.querySelector('progress').value")
        page.reload()
        page.click("summary:text-is('Log')")
        page.wait_for_function("before => document.querySelector('progress')?.value > before + 5", arg=before)
        assert page.locator("details.log[open]").count() == 1  # what is new does not close what one reads
        page.click("button:text-is('Stop')")
        page.wait_for_selector(".badge.stopped", timeout=30_000)
        style, content = (job for job in work.jobs() if job.kind == "train")
        assert 3 < max(content.losses) < 120
        page.click("button:text-is('Go on')")
        page.wait_for_selector(".badge.waiting")
        wait_for(lambda: style.state == "running")
        server.kill()
        server.wait()
        assert style.state == "running" and content.state == "waiting"
        page.wait_for_selector("#away")  # the page says that nobody answers
    port = address.split(":")[2].split("/")[0]
    with servers.studio(work.folder, *options, "--port", port) as (again, _):
        assert again == address
        page.wait_for_selector("#away", state="hidden")
        page.wait_for_selector(".badge.done", timeout=90_000)  # on the page that was open all the time
        page.wrong.clear()  # it has said that the server was away
        assert page.locator(".strip img").count() == 3 and page.locator(".curve polyline").count() == 2
        assert sorted(content.losses) == list(range(1, 121))
        servers.check_accessible(page)
        unbroken = training_settings(content) | {"output": str(tmp_path / "unbroken.safetensors"), "device": "cpu"}
        qrlora.train(qrlora.TrainConfig(**unbroken), on_preview=lambda *_: None)
        assert content.adapter.read_bytes() == (tmp_path / "unbroken.safetensors").read_bytes()
        mix(page, work)
        for name in ("Adapters", "Bases", "Runs"):
            page.click(f"nav >> text={name}")
            servers.check_accessible(page)
        rows, box = page.locator(".row").count(), page.locator("button:text-is('Delete')").first.bounding_box()
        page.mouse.move(box["x"] + 9, box["y"] + 9)
        page.mouse.down(click_count=2)  # of a double click whose first half deleted the run that stood here before
        page.mouse.up(click_count=2)
        page.wait_for_timeout(300)
        assert page.locator(".row").count() == rows > 2
    merged = qrlora.load(work.adapters()[0].adapter).layers
    expected = qrlora.merge([qrlora.load(job.adapter) for job in (content, style)], [1.2, 0.7]).layers
    assert merged.keys() == expected.keys()
    for layer, pair in merged.items():
        assert (pair.B @ pair.A).allclose(expected[layer].B @ expected[layer].A, atol=1e-6)


def mix(page, work):
    """Move a slider, reload, keep a picture as A, click in a grid, save the merge."""
    page.click("nav >> text=Mixer")
    page.wait_for_function(IMAGE, timeout=60_000)
    first = page.evaluate(IMAGE)
    page.fill("input[name=s]", "0.5")
    page.wait_for_function(f"first => {{ const now = ({IMAGE})(); return now && now !== first; }}", arg=first)
    page.reload()
    assert page.input_value("input[name=s]") == "0.5"
    page.wait_for_function(IMAGE)
    page.click("text=Keep as A")
    page.wait_for_selector(".stage.pair")
    page.click("summary:text-is('Grid')")
    page.fill("input[name=rows]", "0, 1.2")
    page.fill("input[name=columns]", "0, 0.7")
    page.click("text=Draw the grid")
    loaded = "() => [...document.querySelectorAll('.cell img')].filter((image) => image.naturalWidth > 0).length === 4"
    page.wait_for_function(loaded, timeout=30_000)  # in the page is not yet fetched
    cell = page.get_attribute(".cell img >> nth=0", "src").removeprefix("/drawing/")
    (work.drawings / cell).unlink()  # as after a server that was away: whoever looks asks for it again
    page.evaluate("() => htmx.trigger(document.querySelector('#result'), 'changed')")
    wait_for((work.drawings / cell).is_file)
    assert page.locator("output").all_inner_texts() == ["1", "0.5"], "beside each slider stands its value"
    servers.check_accessible(page)
    page.click(".cell >> nth=3")
    page.wait_for_selector(".cell[aria-pressed=true][data-c='1.2'][data-s='0.7']")
    assert page.input_value("input[name=c]") == "1.2" and page.input_value("input[name=s]") == "0.7"
    page.click("summary:text-is('Keep the merge')")
    page.click("text=Save the merge")
    page.wait_for_selector(".badge.done", timeout=60_000)
    servers.check_accessible(page)


def wait_for(holds):
    """Look every tenth of a second whether something holds, for a minute."""
    for _ in range(600):
        if holds():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come")
