"""The studio on a built-in base, driven as a person would: python tests/studio_tour.py --base tiny-sd3 --pictures docs.

Prints how long the first page takes once the server listens, how long from a moved slider to the new picture, how long
a grid takes, and what an idle studio with 300 runs takes of a core while a page is open; with --pictures also writes
the pictures of docs/studio.md. Needs Debian's chromium.
"""

import argparse
import secrets
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import psutil
from PIL import Image
from playwright.sync_api import Page, sync_playwright

import servers
from qrlora.studio.work_folder import WorkFolder
from qrlora.world.ground_truth import true_image

IMAGE = "() => document.querySelector('.stage img')?.getAttribute('src')"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def inputs(folder: Path) -> dict[str, Path]:
    """A robot at the right of a wide picture, and a panda in a style."""
    wide = Image.new("RGB", (224, 128), "white")
    wide.paste(true_image("robot", "plain"), (96, 0))
    wide.resize((896, 512), Image.Resampling.LANCZOS).save(folder / "robot.png")
    true_image("panda", "dusk").resize((512, 512), Image.Resampling.LANCZOS).save(folder / "dusk.png")
    return {"content": folder / "robot.png", "style": folder / "dusk.png"}


class Shots:
    """Pictures of pages, kept where they are wanted."""

    def __init__(self, page: Page, folder: Path | None):
        self.page, self.folder = page, folder
        self.taken: dict[str, Path] = {}

    def screenshot(self, name: str, size: dict[str, int] = DESKTOP, dark: bool = False) -> None:
        """One picture, if any are wanted."""
        if self.folder is None:
            return
        self.page.set_viewport_size(size)
        self.page.emulate_media(color_scheme="dark" if dark else "light")
        self.page.evaluate("() => window.scrollTo(0, 0)")
        self.page.wait_for_timeout(400)
        self.taken[name] = self.folder / f"{name}.png"
        self.page.screenshot(path=self.taken[name])
        self.page.set_viewport_size(DESKTOP)
        self.page.emulate_media(color_scheme="light")


def beside(paths: list[Path], output: Path, height: int, gap: int = 24) -> None:
    """Pictures in a row, of one height, as WebP."""
    images = [Image.open(path).convert("RGB") for path in paths]
    images = [x.resize((round(x.width * height / x.height), height), Image.Resampling.LANCZOS) for x in images]
    row = Image.new("RGB", (sum(x.width for x in images) + gap * (len(images) - 1), height), "#8a8a8a")
    left = 0
    for image in images:
        row.paste(image, (left, 0))
        left += image.width + gap
    row.save(output, "WEBP", quality=80, method=6)


def train(page: Page, shots: Shots, pictures: dict[str, Path], base: str, steps: int) -> None:
    """Choose both pictures, move the square, press the button, wait."""
    for role, path in pictures.items():
        page.set_input_files(f"input[name=files_{role}]", path)
        page.wait_for_selector(f"[aria-labelledby=of-{role}] .crop")
    square = page.locator(".crop svg").first.bounding_box()
    assert square is not None
    x, y = square["x"] + square["width"] / 2, square["y"] + square["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + square["width"], y, steps=8)
    page.mouse.up()
    page.select_option("#base", base)
    if steps:
        page.click("summary:text-is('More')")
        page.fill("#more_steps", str(steps))
    page.fill("input[name=shows]", "panda")
    page.locator("input[name=shows]").blur()
    page.wait_for_selector("text=Fits here", timeout=120_000)
    shots.screenshot("pictures")
    shots.screenshot("phone-pictures", PHONE, dark=True)
    page.click("button:text-is('Train')")
    page.wait_for_url("**/runs")
    if shots.folder is not None:
        page.wait_for_function("() => document.querySelector('progress')?.value > 15", timeout=120_000)
        shots.screenshot("phone-runs", PHONE)
        page.click(".row a:has-text('robot')")
        page.wait_for_function("() => document.querySelector('progress')?.value > 34", timeout=120_000)
        shots.screenshot("run", dark=True)
        page.goto(page.url.split("/run/")[0] + "/runs")
    page.wait_for_function("() => document.querySelectorAll('.badge.done').length === 2", timeout=300_000)


def mix(page: Page, shots: Shots) -> tuple[list[float], float]:
    """Seconds from each of some moved sliders to the new picture, and seconds of a grid of 16."""
    page.click("nav >> text=Mixer")
    page.wait_for_function(IMAGE, timeout=120_000)
    took = []
    for name, value in (("s", "0.55"), ("c", "0.75"), ("s", "0.85"), ("c", "1.15"), ("s", "0.9")):
        before, begun = page.evaluate(IMAGE), time.perf_counter()
        page.fill(f"input[name={name}]", value)
        page.wait_for_function(f"b => {{ const x = ({IMAGE})(); return x && x !== b; }}", arg=before, timeout=60_000)
        took.append(time.perf_counter() - begun)
    page.click("text=Keep as A")
    page.click("summary:text-is('Grid')")
    begun = time.perf_counter()
    page.click("text=Draw the grid")
    page.wait_for_function("() => document.querySelectorAll('.cell img').length === 16", timeout=180_000)
    grid = time.perf_counter() - begun
    page.click(".cell[data-c='1.0'][data-s='1.5']")
    page.wait_for_selector(".cell[aria-pressed=true]")
    page.wait_for_timeout(1000)
    shots.screenshot("mixer")
    shots.screenshot("mixer-dark", dark=True)
    shots.screenshot("phone-mixer", PHONE, dark=True)
    page.click("summary:text-is('Keep the merge')")
    page.click("text=Save the merge")
    page.wait_for_selector(".badge.done", timeout=60_000)
    shots.screenshot("merge")
    page.click("nav >> text=Adapters")
    shots.screenshot("adapters")
    shots.screenshot("phone-adapters", PHONE)
    return took, grid


def idle(page: Page, work: WorkFolder, runs: int = 300, seconds: float = 10) -> tuple[float, float]:
    """Seconds until the list of so many runs is there, and the share of a core that a studio takes beside it."""
    job = next(x for x in work.jobs() if x.kind == "train")
    for _ in range(runs):
        folder = work.jobs_folder / secrets.token_hex(6)
        folder.mkdir()
        for name in ("events.jsonl", "lock", "square-0.png", "job.json"):
            shutil.copy(job.folder / name, folder / name)
    with servers.studio(work.folder) as (address, server):
        page.goto(address)
        begun = time.perf_counter()
        page.goto(f"{address.split('?')[0]}runs")
        took = time.perf_counter() - begun
        page.wait_for_timeout(3000)
        process = psutil.Process(server.pid)
        before = sum(process.cpu_times()[:2])
        page.wait_for_timeout(1000 * seconds)
        return took, (sum(process.cpu_times()[:2]) - before) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, help="folder for the pictures of docs/studio.md")
    parser.add_argument("--base", default="tiny-flux", help="to train and draw with")
    parser.add_argument("--steps", type=int, default=0, help="updates of each run; 0: the base's own")
    parser.add_argument("--shots", type=Path, help="folder for each page by itself")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=servers.CHROMIUM, args=list(servers.FLAGS))
        page = browser.new_page(viewport=DESKTOP)
        folder = options.shots or (Path(place) if options.pictures else None)
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        shots = Shots(page, folder)
        pictures = inputs(Path(place))
        with servers.studio(Path(place) / "work") as (address, _):
            begun = time.perf_counter()
            page.goto(address)
            print(f"first page, once the server listens: {time.perf_counter() - begun:.2f} s")
            train(page, shots, pictures, options.base, options.steps)
            took, grid = mix(page, shots)
            page.goto("about:blank")
        listed, share = idle(page, WorkFolder(Path(place) / "work"))
        print(f"300 runs more: their list {listed:.2f} s, then idle with a page open {share:.1%} of a core")
        print(f"from a slider to the new picture: median {statistics.median(took):.2f} s, most {max(took):.2f} s")
        print(f"a grid of 16 pictures: {grid:.1f} s")
        if options.pictures:
            beside([shots.taken[x] for x in ("mixer", "mixer-dark")], options.pictures / "studio-mixer.webp", 700)
            beside([shots.taken[x] for x in ("pictures", "run")], options.pictures / "studio-pages.webp", 700)
            phones = ("phone-pictures", "phone-runs", "phone-mixer", "phone-adapters")
            beside([shots.taken[x] for x in phones], options.pictures / "studio-phone.webp", 844)
        browser.close()


if __name__ == "__main__":
    main()
