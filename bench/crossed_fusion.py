"""Contents and style images crossed: each adapter is trained once, and every content is drawn in every style.

    python bench/crossed_fusion.py --base tiny-flux --methods qr,lora --content-word auto --style-word auto

`qrlora compare` has new adapters for every pair; here 12 adapters give 36 sums, and each is also drawn with alone, with
words that the base knows (the parts of `qrlora compare --decompose`).  Intervals resample contents and style images.
Rows go to FOLDER/rows.csv; what is in the folder is not made again.  `--table` only prints it.

--content-word, --style-word: what they are called in prompts: <c> and <s>; a known word; or auto, the known word
nearest to the image by the base's own loss, the placeholder where none is near (`qrlora.known_words`).
--style-images: how many a style is trained on.
"""

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from harness import arguments
from qrlora.comparison.method_specs import parse_method_spec
from qrlora.comparison.settings import ComparisonSettings
from qrlora.comparison.statistics import mean_over_crossed
from qrlora.comparison.training_settings import training_settings
from qrlora.evaluation import ground_truth_scores
from qrlora.families import open_base
from qrlora.files import load
from qrlora.image_loading import load_image
from qrlora.known_words import nearest_word, word_losses
from qrlora.sampling import generate
from qrlora.training import train
from qrlora.world.captions import CONTENT, STYLE, caption
from qrlora.world.drawings import held_out_contents, known_contents
from qrlora.world.ground_truth import true_image, true_images
from qrlora.world.image_tensors import tensor_from_pil
from qrlora.world.styles import HELD_OUT_STYLES, STYLES

LABELS = ("method", "part", "content", "style", "image", "seed")
SCORES = ("content", "style", "both", "nearest", "content_likeness", "style_likeness", "ssim")
LEAKS = ("leaked_content", "leaked_style")
FIELDS = (*LABELS, *(f"{name} right" if name in LABELS else name for name in SCORES), *LEAKS)
BASE_ALONE, CONTENT_ALONE, STYLE_ALONE, SUM = (
    "known content, known style",
    "content, known style",
    "known content, style",
    "sum",
)


def evenly(names: Sequence[str], count: int, offset: int = 0) -> list[str]:
    """``count`` names, evenly spaced."""
    return [names[((2 * k + 1) * len(names) // (2 * count) + offset) % len(names)] for k in range(count)]


class Crossing:
    """The contents, the style images and the known words of one split, and the folder of results."""

    def __init__(self, wanted: argparse.Namespace) -> None:
        self.wanted, self.base = wanted, open_base(wanted.base, wanted.device, "float32")
        dev, known = wanted.split == "dev", known_contents()
        pool = [name for k, name in enumerate(held_out_contents()) if (k % 3 == 0) == dev]
        self.contents = evenly(pool, wanted.contents)
        shown, styles = known[0 if dev else 1 :: 3], tuple(HELD_OUT_STYLES)
        columns = [evenly(shown, wanted.styles, 17 * k) for k in range(wanted.style_images)]
        self.styles = [(styles[k % len(styles)], tuple(c[k] for c in columns)) for k in range(wanted.styles)]
        self.known_contents = evenly(known[2::3], wanted.known)
        self.known_styles = evenly([name for name in STYLES if name != "plain"], wanted.known)
        self.folder: Path = wanted.folder
        self.suffix = f" seed {wanted.seed}" * (wanted.seed > 0)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rows = self.folder / "rows.csv"
        if not self.rows.exists():
            self.rows.write_text(",".join(FIELDS) + "\n")
        self.done = {tuple(row[name] for name in LABELS) for row in read_rows(self.rows)}

    def draw(self, method: str, part: str, adapters: Sequence, prompts: list[str], targets: list, image: str) -> None:
        """Draw, score and write those of the targets (content, style) that are not there yet; seeds 0, 1, 2 ..."""
        method += self.suffix
        labels = [(method, part, c, s, image, str(k)) for k, (c, s) in enumerate(targets)]
        left = [k for k, label in enumerate(labels) if label not in self.done]
        if not left:
            return
        images = generate(self.base, [prompts[k] for k in left], [(x, 1.0) for x in adapters], seed=left)
        with self.rows.open("a", newline="") as file:
            for k, drawn in zip(left, images, strict=True):
                content, style = targets[k]
                truth = true_images([content], style)[0]
                other = image.split("+")[0] or self.known_contents[0]
                scores = ground_truth_scores(tensor_from_pil([drawn]), truth, content, style, other, "plain")[0]
                values = [round(scores[name], 4) for name in (*SCORES, *LEAKS)]
                csv.writer(file).writerow([*labels[k], *values])

    def adapter(self, spec: str, role: str, settings: dict, style: str, shown: Sequence[str], prompts: list[str]):
        """The adapter of true images of contents in a style, trained now or found in the folder."""
        name = "-".join((spec, role, style, *shown, settings.get("trigger", ""), str(self.wanted.seed)))
        output = self.folder / "adapters" / ("".join(x if x.isalnum() else "-" for x in name) + ".safetensors")
        if not output.exists():
            images = output.with_suffix("")
            images.mkdir(parents=True, exist_ok=True)
            for k, content in enumerate(shown):
                true_image(content, style).save(images / f"{k}.png")
                (images / f"{k}.txt").write_text(prompts[k])
            source = {"image": images} if len(shown) > 1 else {"image": images / "0.png", "prompt": prompts[0]}
            given = {"role": role, "seed": self.wanted.seed, **source}
            train(base=self.base, output=output, progress=False, **{**settings, **given})
        return load(output)

    def word(self, wanted: str, content: str, style: str) -> str:
        """What a content's own words ("<c>") or a style ("<s>") are called in prompts; an image shows both."""
        role = "content" if style == "plain" else "style"
        if wanted != "auto":
            return wanted
        path = self.folder / f"word-{content}-{style}.json".replace(" ", "-")
        if not path.exists():
            image = path.with_suffix(".png")
            true_image(content, style).save(image)
            prompt = caption("{}", "plain") if role == "content" else caption(content, "{}")
            words = [CONTENT, *known_contents()] if role == "content" else [STYLE, *STYLES]
            words, copies = [x for x in words if x != "plain"], 4 if role == "content" else 16
            path.write_text(json.dumps(word_losses(self.base, load_image(image, 128), prompt, words, copies)))
        losses = json.loads(path.read_text())
        return nearest_word(losses, CONTENT if role == "content" else STYLE)

    def run(self, spec: str) -> None:
        """All adapters and images of a method."""
        settings = training_settings(
            self.base, spec, parse_method_spec(spec), ComparisonSettings(base=self.wanted.base, methods=(spec,))
        )
        wanted, of_content, of_style = self.wanted, spec, spec
        of_content += f", {wanted.content_word} content" * (wanted.content_word != CONTENT)
        of_style += f", {wanted.style_word} style" * (wanted.style_word != STYLE)
        of_style += f" x{wanted.style_images}" * (wanted.style_images > 1)
        of_sum = of_content + of_style.removeprefix(spec)
        known = list(zip(self.known_contents, self.known_styles, strict=True))
        self.draw("none", BASE_ALONE, (), [caption(c, s) for c, s in known], known, "")
        contents = {}
        for name in self.contents:
            called = self.word(wanted.content_word, name, "plain")
            own = {**settings["content"], "trigger": called}
            adapter = self.adapter(spec, "content", own, "plain", [name], [caption(called, "plain")])
            contents[name] = called, adapter
            prompts, targets = zip(*((caption(called, s), (name, s)) for s in self.known_styles), strict=True)
            self.draw(of_content, CONTENT_ALONE, [adapter], [*prompts], [*targets], "")
        for style, shown in self.styles:
            word, image = self.word(wanted.style_word, shown[0], style), "+".join(shown)
            own = {**settings["style"], "trigger": word}
            adapter = self.adapter(spec, "style", own, style, shown, [caption(name, word) for name in shown])
            prompts, targets = zip(*((caption(c, word), (c, style)) for c in self.known_contents), strict=True)
            self.draw(of_style, STYLE_ALONE, [adapter], [*prompts], [*targets], image)
            for name, (called, content) in contents.items():
                prompts, targets = [caption(called, word)] * wanted.images, [(name, style)] * wanted.images
                self.draw(of_sum, SUM, [content, adapter], prompts, targets, image)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def print_table(path: Path, against: str = "") -> None:
    """Each part's scores by method, and the differences to one method, else to the first of the part; hundredths."""
    means: dict[tuple[str, str], dict[tuple[str, str], list[dict[str, str]]]] = defaultdict(lambda: defaultdict(list))
    for row in read_rows(path):
        first_image = row["image"].split("+")[0]  # of several, so that they are compared with the first alone
        means[row["part"], row["method"]][row["content"], f"{row['style']} {first_image}"].append(row)

    def crossed(cells: dict, score: str) -> np.ndarray:
        name = f"{score} right" if score in LABELS else score
        rows, columns = (sorted({key[k] for key in cells}) for k in (0, 1))
        value = {key: np.mean([float(row[name]) for row in found]) for key, found in cells.items()}
        return np.array([[value.get((r, c), np.nan) for c in columns] for r in rows])

    def line(name: str, tables: dict[str, np.ndarray]) -> None:
        cells = [mean_over_crossed(x) for x in tables.values()]
        print(
            f"| {name} |",
            " | ".join(f"{100 * x.value:.0f} [{100 * x.low:.0f}, {100 * x.high:.0f}]" for x in cells),
            "|",
        )

    for part in (BASE_ALONE, CONTENT_ALONE, STYLE_ALONE, SUM):
        methods = {method: cells for (of_part, method), cells in means.items() if of_part == part}
        if not methods:
            continue
        print(f"\n| {part} |", " | ".join(SCORES), "|\n|---|" + "---|" * len(SCORES))
        for method, cells in methods.items():
            line(f"`{method}`, {len(cells)}", {name: crossed(cells, name) for name in SCORES})
        first = against if against in methods else next(iter(methods))
        of_first = methods[first]
        for method, cells in methods.items():
            if method != first and cells.keys() == of_first.keys():
                line(f"`{method}` less `{first}`", {n: crossed(cells, n) - crossed(of_first, n) for n in SCORES})


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--base", default="tiny-flux")
    parser.add_argument("--methods", default="qr,lora", help="as of qrlora compare")
    parser.add_argument("--split", choices=("test", "dev"), default="test")
    counts = {"contents": 6, "styles": 6, "style-images": 1, "images": 1, "known": 6, "seed": 0}
    for name, value in counts.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--content-word", default=CONTENT)
    parser.add_argument("--style-word", default=STYLE)
    parser.set_defaults(folder=Path("out/crossed"), threads=1)
    parser.add_argument("--table", action="store_true", help="only print the table of what is in the folder")
    parser.add_argument("--against", default="", help="the method that the others' differences are to; the first")
    wanted = parser.parse_args()
    if not wanted.table:
        if wanted.quick:
            wanted.contents = wanted.styles = wanted.known = 1
        torch.set_num_threads(wanted.threads)
        crossing = Crossing(wanted)
        for spec in wanted.methods.split(","):
            crossing.run(spec)
    print_table(wanted.folder / "rows.csv", wanted.against)


if __name__ == "__main__":
    main()
