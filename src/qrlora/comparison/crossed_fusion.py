"""Contents and style images crossed: each adapter is trained once, and every content is drawn in every style.

A comparison of pairs has new adapters for every pair; here 12 adapters give 36 sums, and each adapter is also drawn
with alone, with words that the base knows: the parts of `decomposition`.  What is in the folder is not made again.
"""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from ..adapter import Adapter
from ..config import TRIGGERS
from ..config.type_checks import check_strengths
from ..files import load
from ..image_loading import load_image
from ..known_words import COPIES, nearest_word, word_losses
from ..sampling import generate
from ..training import train
from ..world.captions import CONTENT, STYLE, caption, known_words
from ..world.drawings import held_out_contents, known_contents
from ..world.ground_truth import true_image
from ..world.styles import HELD_OUT_STYLES
from .crossed_tables import FIELDS, LABELS, LEAKS, SCORES, read_rows
from .decomposition import BASE_ALONE, CONTENT_ALONE, STYLE_ALONE, SUM, Adapters, DecomposedPrompt, draw_and_score
from .image_pairs import Split
from .method_specs import parse_method_spec
from .run_job import open_base_once
from .settings import ComparisonSettings, check_counts
from .training_settings import training_settings

Role = Literal["content", "style"]
PLAIN = "plain"
"""The style of content images."""


@dataclass(frozen=True, kw_only=True)
class CrossedSettings:
    """What is crossed, and where the rows go."""

    root: Path
    """The folder of all crossed comparisons."""
    base: str = "tiny-flux"
    split: Split = "test"
    contents: int = 6
    styles: int = 6
    """Count of style images; they take turns with the held-out styles."""
    style_images: int = 1
    """Images that one style adapter is trained on."""
    images: int = 1
    """Images of each sum."""
    known: int = 6
    """Known contents, and known styles, with which each adapter is drawn alone."""
    seed: int = 0
    """Of training."""
    content_word: str = CONTENT
    """What a content is called in prompts: the placeholder, a known content, or "auto", the known content that is
    nearest to the image by the base's loss (`known_words`); the placeholder where none is near."""
    style_word: str = STYLE
    content_strength: float = 1.0
    """In sums; other than 1 they are all that is drawn."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check the counts and the strength."""
        check_counts(vars(self), "contents", "styles", "style_images", "images", "known")
        check_strengths([self.content_strength])

    @property
    def folder(self) -> Path:
        """Of the results of one base, one split and as many contents and style images."""
        return self.root / f"{Path(self.base).name}-{self.split}-{self.contents}x{self.styles}"


def evenly(names: Sequence[str], count: int, offset: int = 0) -> list[str]:
    """``count`` names, evenly spaced. Raises ValueError: more than there are."""
    if count > len(names):
        raise ValueError(f"asked for {count} of {len(names)} names: {', '.join(names[:3])} ...")
    return [names[((2 * k + 1) * len(names) // (2 * count) + offset) % len(names)] for k in range(count)]


class CrossedFusion:
    """The contents, the style images and the known words of one split, and the folder of results."""

    def __init__(self, settings: CrossedSettings) -> None:
        self.settings, self.base = settings, open_base_once(settings.base, settings.device, "float32")
        dev, known = settings.split == "dev", known_contents()
        pool = [name for k, name in enumerate(held_out_contents()) if (k % 3 == 0) == dev]
        self.contents = evenly(pool, settings.contents)
        shown, styles = known[0 if dev else 1 :: 3], tuple(HELD_OUT_STYLES)
        columns = [evenly(shown, settings.styles, 17 * k) for k in range(settings.style_images)]
        self.styles = [(styles[k % len(styles)], tuple(c[k] for c in columns)) for k in range(settings.styles)]
        self.known_contents = evenly(known[2::3], settings.known)
        self.known_styles = evenly(known_words("style"), settings.known)
        self.folder = settings.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rows = self.folder / "rows.csv"
        if not self.rows.exists():
            self.rows.write_text(",".join(FIELDS) + "\n")
        self.done = {tuple(row[name] for name in LABELS) for row in read_rows(self.rows)}

    def run(self, spec: str) -> None:
        """Train all adapters of a method and draw all its images, but for those that are there.

        Raises: ValueError: no such method or setting.
        """
        parse_method_spec(spec)  # refused before anything is made
        told, (of_content, of_style, of_sum) = self.settings, self.labels(spec)
        if told.content_strength == 1:
            known = zip(self.known_contents, self.known_styles, strict=True)
            self._draw("none", [self._asked(BASE_ALONE, "none", k, *x, *x) for k, x in enumerate(known)], [], "")
            for name in self.contents:
                word, adapter = self.content_adapter(spec, name)
                places = enumerate(self.known_styles)
                asked = [self._asked(CONTENT_ALONE, "content", k, word, s, name, s) for k, s in places]
                self._draw(of_content, asked, [(adapter, 1.0)], "")
        for style, shown in self.styles:
            word, adapter = self.style_adapter(spec, style, shown)
            image, places = "+".join(shown), enumerate(self.known_contents)
            if told.content_strength == 1:
                asked = [self._asked(STYLE_ALONE, "style", k, c, word, c, style) for k, c in places]
                self._draw(of_style, asked, [(adapter, 1.0)], image)
            for name in self.contents:
                called, content = self.content_adapter(spec, name)
                asked = [self._asked(SUM, "both", k, called, word, name, style) for k in range(told.images)]
                self._draw(of_sum, asked, [(content, told.content_strength), (adapter, 1.0)], image)

    def draw_sum(self, spec: str, k: int) -> Image.Image:
        """A method's sum of the k-th content and the k-th style image, seed 0, as in the rows."""
        word, content = self.content_adapter(spec, self.contents[k])
        called, style = self.style_adapter(spec, *self.styles[k])
        weighted = [(content, self.settings.content_strength), (style, 1.0)]
        return generate(self.base, caption(word, called), weighted, seed=0)[0]

    def content_adapter(self, spec: str, name: str) -> tuple[str, Adapter]:
        """What a content is called, and its adapter: trained now, or found in the folder."""
        word = self._word(self.settings.content_word, name, PLAIN)
        return word, self._adapter(spec, "content", word, PLAIN, [name], [caption(word, PLAIN)])

    def style_adapter(self, spec: str, style: str, shown: Sequence[str]) -> tuple[str, Adapter]:
        """What a style is called, and its adapter, of images that show these contents in it."""
        word = self._word(self.settings.style_word, shown[0], style)
        return word, self._adapter(spec, "style", word, style, shown, [caption(name, word) for name in shown])

    def labels(self, spec: str) -> tuple[str, str, str]:
        """How rows call a method's content adapters, its style adapters and its sums."""
        told = self.settings
        content = f", {told.content_word} content" * (told.content_word != CONTENT)
        style = f", {told.style_word} style" * (told.style_word != STYLE) + f" x{told.style_images}" * (
            told.style_images > 1
        )
        strength = f", content at {told.content_strength:g}" * (told.content_strength != 1)
        seed = f" seed {told.seed}" * (told.seed > 0)
        return spec + content + seed, spec + style + seed, spec + content + style + strength + seed

    @staticmethod
    def _asked(
        part: str, adapters: Adapters, seed: int, content_word: str, style_word: str, content: str, style: str
    ) -> DecomposedPrompt:
        return DecomposedPrompt(part, adapters, caption(content_word, style_word), seed, content, style)

    def _draw(
        self, method: str, asked: list[DecomposedPrompt], adapters: Sequence[tuple[Adapter, float]], image: str
    ) -> None:
        """Draw, score and write those images that are not there yet; ``image``: what the style image shows."""
        labels = {x: (method, x.part, x.content, x.style, image, str(x.seed)) for x in asked}
        left = [x for x in asked if labels[x] not in self.done]
        if not left:
            return
        shown = image.split("+")[0] or self.contents[0]  # of no style image: nothing could leak, and nothing is written
        drawn = draw_and_score(
            left, lambda prompts, seeds: generate(self.base, prompts, adapters, seed=seeds), (shown, PLAIN)
        )
        with self.rows.open("a", newline="") as file:
            for x, (_, scores) in zip(left, drawn, strict=True):
                values = [round(scores[name], 4) for name in SCORES]
                leaks = [round(scores[name], 4) if image else "" for name in LEAKS]
                csv.writer(file, lineterminator="\n").writerow([*labels[x], *values, *leaks])
        self.done |= {labels[x] for x in left}

    def _adapter(
        self, spec: str, role: Role, word: str, style: str, shown: Sequence[str], prompts: list[str]
    ) -> Adapter:
        """The adapter of true images of contents in a style, trained now or found in the folder."""
        name = "-".join((spec, role, style, *shown, word, str(self.settings.seed)))
        output = self.folder / "adapters" / ("".join(x if x.isalnum() else "-" for x in name) + ".safetensors")
        if not output.exists():
            images = output.with_suffix("")
            images.mkdir(parents=True, exist_ok=True)
            for k, content in enumerate(shown):
                true_image(content, style).save(images / f"{k}.png")
                (images / f"{k}.txt").write_text(prompts[k])
            source = {"image": images} if len(shown) > 1 else {"image": images / "0.png", "prompt": prompts[0]}
            of_base = ComparisonSettings(base=self.settings.base, methods=(spec,))
            settings = training_settings(self.base, spec, parse_method_spec(spec), of_base)[role]
            given = {"role": role, "seed": self.settings.seed, "trigger": word, **source}
            train(base=self.base, output=output, progress=False, **{**settings, **given})
        return load(output)

    def _word(self, wanted: str, content: str, style: str) -> str:
        """What a content's own words ("<c>") or a style ("<s>") are called in prompts; an image shows both."""
        if wanted != "auto":
            return wanted
        role = "content" if style == PLAIN else "style"
        path = self.folder / f"word-{content}-{style}.json".replace(" ", "-")
        if not path.exists():
            image = path.with_suffix(".png")
            true_image(content, style).save(image)
            prompt = caption("{}", PLAIN) if role == "content" else caption(content, "{}")
            words = [TRIGGERS[role], *known_words(role)]
            losses = word_losses(self.base, load_image(image, 128), prompt, words, COPIES[role])
            path.write_text(json.dumps(losses))
        return nearest_word(json.loads(path.read_text()), TRIGGERS[role])
