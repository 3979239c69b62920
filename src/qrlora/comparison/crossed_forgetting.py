"""Forgetting in a crossed comparison: what adapters do to images that ask for none of them.

The base's known captions are drawn with an adapter on it, beside the base's own images of the same seeds.  An adapter
whose trigger is a word that the base knows takes that word from the base, too: captions with it are drawn with the
adapter, and scored by what the word meant before.
"""

from collections.abc import Sequence

from PIL import Image

from ..baselines.fusion_method import sample_with_adapter
from ..output_files import atomic
from ..sampling import generate
from ..world.captions import CONTENT, STYLE, caption
from .crossed_adapters import PLAIN, CrossedAdapters, RoleAdapter
from .crossed_rows import CrossedRows
from .crossed_tables import BOTH
from .decomposition import (
    OF_CONTENT_WORD,
    OF_STYLE_WORD,
    WITH_BOTH,
    WITH_CONTENT,
    WITH_STYLE,
    Adapters,
    DecomposedPrompt,
    Draw,
    without_trigger,
)

BASE = "none"
"""The method whose rows are those of the base's own images."""


class CrossedForgetting:
    """The images that ask for no adapter, and those that ask for an adapter's word as the base knew it."""

    def __init__(self, adapters: CrossedAdapters, rows: CrossedRows, known: Sequence[tuple[str, str]]) -> None:
        """Args: known: the contents and styles of the base's captions."""
        self.adapters, self.rows, self.known = adapters, rows, list(known)

    def draw_with_content(self, method: str, name: str, content: RoleAdapter) -> None:
        """The known captions with a content's adapter on the base, and its word in the known styles."""
        word, draw = content.word.word, sample_with_adapter(self.adapters.base, without_trigger(content.adapter)).draw
        asked = [x for x in self._known(WITH_CONTENT, "content") if x.content != word]
        if word != CONTENT:
            asked += [_asked(OF_CONTENT_WORD, "content", k, word, s) for k, (_, s) in enumerate(self.known)]
        self._draw(method, asked, draw, name, (name, PLAIN))

    def draw_with_style(self, method: str, style: str, shown: Sequence[str], adapter: RoleAdapter) -> None:
        """The known captions with a style's adapter on the base, and the known contents in its word."""
        word, draw = adapter.word.word, sample_with_adapter(self.adapters.base, without_trigger(adapter.adapter)).draw
        asked = [x for x in self._known(WITH_STYLE, "style") if x.style != word]
        if word != STYLE:
            asked += [_asked(OF_STYLE_WORD, "style", k, c, word) for k, (c, _) in enumerate(self.known)]
        self._draw(method, asked, draw, "+".join(shown), (shown[0], self._leaking(style)))

    def draw_with_sum(self, method: str, i: int, j: int, words: tuple[str, str], draw: Draw) -> None:
        """One known caption with both adapters on the base, those of the i-th content and the j-th style: each content
        and each style meets every caption.

        Args: words: theirs.  draw: with both, without a check of triggers.
        """
        name, (style, shown) = self.adapters.contents[i], self.adapters.styles[j]
        k = (i + j) % len(self.known)
        asked = [x for x in self._known(WITH_BOTH, "both")[k : k + 1] if x.content != words[0] and x.style != words[1]]
        self._draw(method, asked, draw, f"{name}{BOTH}{'+'.join(shown)}", (name, self._leaking(style)))

    def _known(self, part: str, present: Adapters) -> list[DecomposedPrompt]:
        return [_asked(part, present, k, *x) for k, x in enumerate(self.known)]

    def _leaking(self, style: str) -> str:
        """The style that should not show; a hand is no class of the classifier beside the known styles."""
        return style if self.adapters.settings.truth == "exact" else PLAIN

    def _draw(
        self, method: str, asked: Sequence[DecomposedPrompt], draw: Draw, image: str, leaks: tuple[str, str]
    ) -> None:
        """Write the rows of the base's own images, and of the method's."""
        for label, drawn in ((BASE, self._base_images), (method, draw)):
            self.rows.draw(label, asked, drawn, image, leaks=leaks, base_images=self._base_images)

    def _base_images(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """The base's own images, drawn now or found in the folder."""
        folder = self.adapters.folder / "base"
        paths = [folder / f"{x}-{k}.png".replace(" ", "-") for x, k in zip(prompts, seeds, strict=True)]
        left = {path: k for k, path in enumerate(paths) if not path.exists()}
        if left:
            folder.mkdir(exist_ok=True)
            asked = [prompts[k] for k in left.values()], [seeds[k] for k in left.values()]
            for path, image in zip(left, generate(self.adapters.base, asked[0], seed=asked[1]), strict=True):
                with atomic(path) as file:
                    image.save(file, "PNG")
        return [Image.open(path).convert("RGB") for path in paths]


def _asked(part: str, present: Adapters, seed: int, content: str, style: str) -> DecomposedPrompt:
    """A caption of known words, which should show what they mean."""
    return DecomposedPrompt(part, present, caption(content, style), seed, content, style)
