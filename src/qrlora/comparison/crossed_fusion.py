"""Contents and style images crossed: each adapter is trained once, and every content is drawn in every style.

A comparison of pairs has new adapters for every pair; here 12 adapters give 36 sums, and each adapter is also drawn
with alone, with words that the base knows: the parts of `decomposition`; and, if that is asked for, images that ask for
none of them (`crossed_forgetting`).  What is in the folder is not made again.
"""

from collections.abc import Sequence

from PIL import Image

from ..adapter import Adapter
from ..baselines import FusionInputs
from ..baselines.fusion_method import sample_with_adapter
from ..sampling import generate
from ..world.captions import caption, known_words
from .crossed_adapters import ORACLE, PLAIN, CrossedAdapters, RoleAdapter, evenly
from .crossed_forgetting import BASE, CrossedForgetting
from .crossed_rows import NO_WORD, CrossedRows
from .crossed_settings import CrossedSettings
from .crossed_tables import ORACLE_PAIRS
from .decomposition import (
    BASE_ALONE,
    CONTENT_ALONE,
    STYLE_ALONE,
    SUM,
    Adapters,
    DecomposedPrompt,
    Draw,
    without_trigger,
)
from .method_specs import spec_of_adapters


class CrossedFusion:
    """The drawings of contents in styles and their scores: the rows of the folder of `CrossedSettings`."""

    def __init__(self, settings: CrossedSettings) -> None:
        self.settings, self.adapters = settings, CrossedAdapters(settings)
        self.base, self.contents, self.styles = self.adapters.base, self.adapters.contents, self.adapters.styles
        self.known_contents = self.adapters.known_contents
        self.known_styles = evenly(known_words("style"), settings.known)
        self.rows = CrossedRows(settings.folder)
        known = zip(self.known_contents, self.known_styles, strict=True)
        self.forgetting = CrossedForgetting(self.adapters, self.rows, list(known))

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
        for j, style in enumerate(self.styles):
            if self.settings.content_strength == 1:
                self._draw_style_alone(spec, *style)
            for i in range(len(self.contents)):
                self._draw_sum(spec, i, j)

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
        self.rows.draw(BASE, asked, lambda prompts, seeds: generate(self.base, prompts, seed=seeds))

    def _draw_content_alone(self, spec: str, name: str) -> None:
        """A content's adapter in known styles."""
        content, method = self.adapters.content_adapter(spec, name), self._labels_alone(spec)[0]
        called = enumerate(self.known_styles)
        asked = [_asked(CONTENT_ALONE, "content", k, content.word.word, s, name, s) for k, s in called]
        self.rows.draw(method, asked, self._draw_with(content.adapter), words=(content.word, NO_WORD))
        if self.settings.forgetting:
            self.forgetting.draw_with_content(method, name, content)

    def _draw_style_alone(self, spec: str, style: str, shown: Sequence[str]) -> None:
        """A style's adapter on known contents."""
        adapter = self.adapters.style_adapter(spec, style, shown)
        method, image = self._labels_alone(spec)[1], "+".join(shown)
        called = enumerate(self.known_contents)
        asked = [_asked(STYLE_ALONE, "style", k, c, adapter.word.word, c, style) for k, c in called]
        words, leaks = (NO_WORD, adapter.word), (shown[0], PLAIN)
        self.rows.draw(method, asked, self._draw_with(adapter.adapter), image, words, leaks)
        if self.settings.forgetting:
            self.forgetting.draw_with_style(method, style, shown, adapter)

    def _draw_sum(self, spec: str, i: int, j: int) -> None:
        """Both adapters, those of the i-th content and the j-th style, fused as the method does."""
        name, (style, shown) = self.contents[i], self.styles[j]
        content, other = self.adapters.content_adapter(spec, name), self.adapters.style_adapter(spec, style, shown)
        method, image = self.settings.labels(spec)[2], "+".join(shown)
        called, seeds = (content.word.word, other.word.word), range(self.settings.images)
        asked = [_asked(SUM, "both", k, *called, name, style) for k in seeds]
        words, leaks = (content.word, other.word), (shown[0], PLAIN)
        self.rows.draw(method, asked, self._draw_fused(spec, content, other), image, words, leaks)
        if self.settings.forgetting:
            unasked = (x._replace(adapter=without_trigger(x.adapter)) for x in (content, other))
            self.forgetting.draw_with_sum(method, i, j, called, self._draw_fused(spec, *unasked))

    def _draw_oracle(self, spec: str, k: int) -> None:
        """One adapter of the true image of the k-th content in the k-th style."""
        style_word, oracle = self.adapters.oracle_adapter(spec, k)
        method, (style, shown) = self.settings.labels(spec)[2], self.styles[k]
        called, seeds = (oracle.word.word, style_word.word), range(self.settings.images)
        asked = [_asked(ORACLE_PAIRS, "content", seed, *called, self.contents[k], style) for seed in seeds]
        words, leaks = (oracle.word, style_word), (shown[0], PLAIN)
        self.rows.draw(method, asked, self._draw_with(oracle.adapter), "+".join(shown), words, leaks)

    def _labels_alone(self, spec: str) -> tuple[str, str, str]:
        """The labels of adapters alone, which are those of the method that trained them, whatever merges them."""
        return self.settings.labels(spec_of_adapters(spec))

    def _draw_with(self, adapter: Adapter) -> Draw:
        """Draws with one adapter at strength 1."""
        return sample_with_adapter(self.base, adapter).draw

    def _draw_fused(self, spec: str, content: RoleAdapter, style: RoleAdapter) -> Draw:
        """Draws with two adapters, which the method combines when something is drawn."""
        strengths, images = (self.settings.content_strength, 1.0), (content.training_image, style.training_image)
        inputs = FusionInputs(self.base, content.adapter, style.adapter, *images, strengths, self.settings.seed)
        return lambda prompts, seeds: self.adapters.method(spec).fuse(inputs).draw(prompts, seeds)


def _asked(
    part: str, adapters: Adapters, seed: int, content_word: str, style_word: str, content: str, style: str
) -> DecomposedPrompt:
    return DecomposedPrompt(part, adapters, caption(content_word, style_word), seed, content, style)
