"""Draws pictures of docs/first_minutes.md and docs/strengths.md on the built-in base: which training images work, which
do not, and the sheet of a weak adapter.

python docs/site/pictures.py content style leak weak    # some minutes on two cores; FOLDER: docs/gallery
"""

import contextlib
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFont

import qrlora
from qrlora import cli, plots
from qrlora.world.captions import CONTENT_TRAINING_PROMPT
from qrlora.world.ground_truth import true_image

FOLDER = Path(__file__).parents[1] / "gallery"
SUBJECT, STYLE_SUBJECT, OTHER, STYLE = "robot", "panda", "owl", "dusk"
SIDE = 256
"""Of the training images made here, in pixels; the base halves them."""
COUNT = 3


def drawing(name: str, side: int, style: str = "plain") -> Image.Image:
    return true_image(name, style).resize((side, side), Image.Resampling.LANCZOS)


def pasted(*places: tuple[str, int, int, int]) -> Image.Image:
    """Drawings on white: (name, side, left, top), multiplied, so that no box shows."""
    page = Image.new("RGB", (SIDE, SIDE), "white")
    for name, side, left, top in places:
        layer = Image.new("RGB", (SIDE, SIDE), "white")
        layer.paste(drawing(name, side), (left, top))
        page = ImageChops.multiply(page, layer)
    return page


def with_text(image: Image.Image) -> Image.Image:
    """The image with lettering across it, as posters and watermarks have."""
    image = image.copy()
    font = ImageFont.load_default(size=44)
    pen = ImageDraw.Draw(image)
    for y, words in ((4, "SUMMER"), (204, "SALE 50%")):
        pen.text((SIDE // 2, y), words, font=font, fill="#1f1147", anchor="ma")
    return image


class Trainer:
    """Trains on images that are made here, on one open base, in a folder of its own."""

    def __init__(self) -> None:
        self.base = qrlora.open_base("tiny-flux", dtype="float32")
        self.folder = Path(tempfile.mkdtemp())
        self.kept: dict[str, qrlora.Adapter] = {}

    def __call__(
        self, name: str, image: Image.Image, role: str, prompt: str, steps: int | None = None
    ) -> qrlora.Adapter:
        if name not in self.kept:
            path = self.folder / f"{name}.png"
            image.save(path)
            output = path.with_suffix(".safetensors")
            self.kept[name] = qrlora.train(
                image=path, role=role, prompt=prompt, output=output, base=self.base, steps=steps
            )
        return self.kept[name]

    def content(self, name: str, image: Image.Image) -> qrlora.Adapter:
        return self(name, image, "content", CONTENT_TRAINING_PROMPT)

    def style(self, name: str, image: Image.Image, prompt: str) -> qrlora.Adapter:
        return self(name, image, "style", prompt)

    def good_content(self) -> qrlora.Adapter:
        return self.content("clean", drawing(SUBJECT, SIDE))

    def good_style(self) -> qrlora.Adapter:
        return self.style("good", drawing(STYLE_SUBJECT, SIDE, STYLE), f"a {STYLE_SUBJECT} in <s> style")

    def draw(self, prompt: str, *adapters: tuple[qrlora.Adapter, float]) -> list[Image.Image]:
        return qrlora.generate(self.base, prompt, adapters, count=COUNT, seed=0)


def content(trainer: Trainer) -> list[plots.Panel]:
    """Which content images work: one subject, large, on little else. The image, then the sum with a good style."""
    others = [(name, 84, x, y) for name, x, y in (("mushroom", 0, 0), ("guitar", 172, 0), ("automobile", 0, 172))]
    images = {
        "clean": ("one subject, large, plain background", drawing(SUBJECT, SIDE)),
        "small": ("the subject small", pasted((SUBJECT, 84, 86, 130))),
        "two": ("two subjects", pasted((SUBJECT, 132, -2, 62), (OTHER, 132, 126, 62))),
        "clutter": ("clutter", pasted((SUBJECT, 116, 70, 70), *others, ("palm tree", 84, 172, 172))),
    }
    panels = []
    for key, (title, image) in images.items():
        adapters = (trainer.content(key, image), 1.0), (trainer.good_style(), 1.0)
        panels.append(plots.Panel(title, [image.resize((128, 128)), *trainer.draw("a <c> in <s> style", *adapters)]))
    return panels


def style(trainer: Trainer) -> list[plots.Panel]:
    """Which style images work: the style everywhere in the image, no lettering. The image, then another subject."""
    whole, half = drawing(STYLE_SUBJECT, SIDE, STYLE), drawing(STYLE_SUBJECT, SIDE)
    half.paste(whole.crop((0, 0, SIDE // 2, SIDE)), (0, 0))
    images = {
        "good": ("the style all over the picture", whole),
        "lettering": ("with lettering", with_text(whole)),
        "half": ("half of it in another style", half),
    }
    panels = []
    for key, (title, image) in images.items():
        adapter = trainer.style(key, image, f"a {STYLE_SUBJECT} in <s> style")
        drawn = trainer.draw(f"a {OTHER} in <s> style", (adapter, 1.0))
        panels.append(plots.Panel(title, [image.resize((128, 128)), *drawn]))
    return panels


def leak(trainer: Trainer) -> list[plots.Panel]:
    """What to do when the style image's subject shows: name it in the prompt, then lower the style's strength."""
    image = drawing(STYLE_SUBJECT, SIDE, STYLE)
    unnamed = trainer.style("unnamed", image, "<s> style")
    wrong = trainer.style("wrong", image, f"a {OTHER} in <s> style")
    rows = [
        ("the prompt names nothing: “<s> style”", unnamed, 1.0),
        ("the same adapter at strength 0.6", unnamed, 0.6),
        (f"the prompt names the wrong subject: “a {OTHER} in <s> style”", wrong, 1.0),
        (f"the prompt names what it shows: “a {STYLE_SUBJECT} in <s> style”", trainer.good_style(), 1.0),
    ]
    panels = []
    for title, adapter, strength in rows:
        drawn = trainer.draw(f"a {OTHER} in <s> style", (adapter, strength))
        drawn += trainer.draw("a <c> in <s> style", (trainer.good_content(), 1.0), (adapter, strength))
        panels.append(plots.Panel(title, drawn))
    return panels


def weak(trainer: Trainer) -> None:
    """The sheet of `qrlora decompose` for a style of two updates; prints its table."""
    trainer.good_content()
    trainer("short", drawing(STYLE_SUBJECT, SIDE, "screen"), "style", f"a {STYLE_SUBJECT} in <s> style", steps=2)
    files = [str(trainer.folder / f"{name}.safetensors") for name in ("clean", "short")]
    drawn = trainer.folder / "sheet.png"
    with contextlib.suppress(SystemExit):
        cli.main(["decompose", *files, "-o", str(drawn)])
    sheet = Image.open(drawn).convert("RGB")
    sheet.resize((sheet.width * 2 // 3, sheet.height * 2 // 3)).save(FOLDER / "decompose.webp", quality=85)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    trainer = Trainer()
    if "weak" in sys.argv[1:]:
        weak(trainer)
    for name in (name for name in sys.argv[1:] if name != "weak"):
        panels = {"content": content, "style": style, "leak": leak}[name](trainer)
        columns = max(len(panel.pictures) for panel in panels)
        sheet = plots.sheet(panels, columns, footer="qr on tiny-flux, seed 0")
        plots.save(sheet, FOLDER / f"{name}.webp", overwrite=True)
