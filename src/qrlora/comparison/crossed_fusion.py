"""Contents and style images crossed: each adapter is trained once, and every content is drawn in every style.

A comparison of pairs has new adapters for every pair; here 12 adapters give 36 sums, and each adapter is also drawn
with alone, with words that the base knows: the parts of `decomposition`.  What is in the folder is not made again.
"""

from collections.abc import Sequence

from PIL import Image

from ..adapter import Adapter
from ..baselines import FusionInputs
from ..baselines.fusion_method import sample_with_adapter
from ..sampling import generate
from ..world.captions import caption, known_words
from .crossed_adapters import ORACLE, PLAIN, CrossedAdapters, CrossedSettings, RoleAdapter, Word, evenly
from .crossed_tables import LABELS, LEAKS, ORACLE_PAIRS, SCORES, VALUES
from .decomposition import BASE_ALONE, CONTENT_ALONE, STYLE_ALONE, SUM, Adapters, DecomposedPrompt, Draw, draw_and_score
from .row_file import RowFile

NO_WORD = Word("")


class CrossedFusion:
    """The drawings of contents in styles and their scores: the rows of the folder of `CrossedSettings`."""

    def __init__(self, settings: CrossedSettings) -> None:
        self.settings, self.adapters = settings, CrossedAdapters(settings)
        self.base, self.contents, self.styles = self.adapters.base, self.adapters.contents, self.adapters.styles
        self.known_contents = self.adapters.known_contents
        self.known_styles = evenly(known_words("style"), settings.known)
        self.rows = RowFile(settings.folder / "rows.csv", LABELS, VALUES)

    def run(self, spec: str) -> None:
        """Train all adapters of a method and draw all its images, but for those that are there.

        The oracle has an adapter for each pair, so that it draws the k-th content in the k-th style alone.

        Raises: ValueError: no such method or setting, or one that combines no content adapter with a style adapter.
        """
        fusion = self.adapters.method(spec)  # refused before anything is made
        if fusion.name == ORACLE:
            for k in range(min(len(self.contents), len(self.styles))):
                self._draw_oracle(spec, k)
            return
        if self.settings.content_strength == 1:
            self._draw_base_alone()
            for name in self.contents:
                self._draw_content_alone(spec, name)
        for style, shown in self.styles:
            if self.settings.content_strength == 1:
                self._draw_style_alone(spec, style, shown)
            for name in self.contents:
                self._draw_sum(spec, name, style, shown)

    def pair_image(self, spec: str, k: int) -> Image.Image:
        """A method's image of the k-th content in the k-th style, seed 0, as in the rows."""
        if self.adapters.method(spec).name == ORACLE:
            style_word, oracle = self.adapters.oracle_adapter(spec, k)
            return self._draw_with(oracle.adapter)([caption(oracle.word.word, style_word.word)], [0])[0]
        content = self.adapters.content_adapter(spec, self.contents[k])
        style = self.adapters.style_adapter(spec, *self.styles[k])
        return self._draw_fused(spec, content, style)([caption(content.word.word, style.word.word)], [0])[0]

    def _draw_base_alone(self) -> None:
        known = zip(self.known_contents, self.known_styles, strict=True)
        asked = [_asked(BASE_ALONE, "none", k, *x, *x) for k, x in enumerate(known)]
        if left := self._left("none", asked, ""):
            self._draw("none", left, lambda prompts, seeds: generate(self.base, prompts, seed=seeds), "")

    def _draw_content_alone(self, spec: str, name: str) -> None:
        """A content's adapter in known styles."""
        content, method = self.adapters.content_adapter(spec, name), self.settings.labels(spec)[0]
        called = enumerate(self.known_styles)
        asked = [_asked(CONTENT_ALONE, "content", k, content.word.word, s, name, s) for k, s in called]
        if left := self._left(method, asked, ""):
            self._draw(method, left, self._draw_with(content.adapter), "", content.word)

    def _draw_style_alone(self, spec: str, style: str, shown: Sequence[str]) -> None:
        """A style's adapter on known contents."""
        adapter = self.adapters.style_adapter(spec, style, shown)
        method, image = self.settings.labels(spec)[1], "+".join(shown)
        called = enumerate(self.known_contents)
        asked = [_asked(STYLE_ALONE, "style", k, c, adapter.word.word, c, style) for k, c in called]
        if left := self._left(method, asked, image):
            self._draw(method, left, self._draw_with(adapter.adapter), image, NO_WORD, adapter.word)

    def _draw_sum(self, spec: str, name: str, style: str, shown: Sequence[str]) -> None:
        """Both adapters, fused as the method does."""
        content, other = self.adapters.content_adapter(spec, name), self.adapters.style_adapter(spec, style, shown)
        method, image = self.settings.labels(spec)[2], "+".join(shown)
        called, seeds = (content.word.word, other.word.word), range(self.settings.images)
        asked = [_asked(SUM, "both", k, *called, name, style) for k in seeds]
        if left := self._left(method, asked, image):
            self._draw(method, left, self._draw_fused(spec, content, other), image, content.word, other.word)

    def _draw_oracle(self, spec: str, k: int) -> None:
        """One adapter of the true image of the k-th content in the k-th style."""
        style_word, oracle = self.adapters.oracle_adapter(spec, k)
        method, (style, shown) = self.settings.labels(spec)[2], self.styles[k]
        called, seeds = (oracle.word.word, style_word.word), range(self.settings.images)
        asked = [_asked(ORACLE_PAIRS, "content", seed, *called, self.contents[k], style) for seed in seeds]
        if left := self._left(method, asked, "+".join(shown)):
            self._draw(method, left, self._draw_with(oracle.adapter), "+".join(shown), oracle.word, style_word)

    def _draw_with(self, adapter: Adapter) -> Draw:
        """Draws with one adapter at strength 1."""
        return sample_with_adapter(self.base, adapter).draw

    def _draw_fused(self, spec: str, content: RoleAdapter, style: RoleAdapter) -> Draw:
        """Draws with two adapters, as the method combines them."""
        strengths, images = (self.settings.content_strength, 1.0), (content.training_image, style.training_image)
        inputs = FusionInputs(self.base, content.adapter, style.adapter, *images, strengths, self.settings.seed)
        return self.adapters.method(spec).fuse(inputs).draw

    def _left(self, method: str, asked: list[DecomposedPrompt], image: str) -> list[DecomposedPrompt]:
        """Those images of a method that are not there yet; ``image``: what the style image shows."""
        return [x for x in asked if not self.rows.has(_row_labels(method, x, image))]

    def _draw(
        self,
        method: str,
        asked: list[DecomposedPrompt],
        draw: Draw,
        image: str,
        content_word: Word = NO_WORD,
        style_word: Word = NO_WORD,
    ) -> None:
        """Draw, score and write images; ``image``: what the style image shows."""
        shown = image.split("+")[0] or self.contents[0]  # of no style image: nothing could leak, and nothing is written
        drawn = draw_and_score(asked, draw, (shown, PLAIN))
        words = [x for word in (content_word, style_word) for x in (word.known, word.loss)]
        self.rows.append(
            [
                *_row_labels(method, x, image),
                *(scores[name] for name in SCORES),
                *(scores[name] if image else None for name in LEAKS),
                *words,
            ]
            for x, (_, scores) in zip(asked, drawn, strict=True)
        )


def _asked(
    part: str, adapters: Adapters, seed: int, content_word: str, style_word: str, content: str, style: str
) -> DecomposedPrompt:
    return DecomposedPrompt(part, adapters, caption(content_word, style_word), seed, content, style)


def _row_labels(method: str, x: DecomposedPrompt, image: str) -> tuple[str, ...]:
    """The LABELS of a row of a crossed comparison."""
    return method, x.part, x.content, x.style, image, str(x.seed)
