"""The settings of a crossed comparison: what is crossed, how it is trained and called, and where the rows go."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..config.type_checks import check_strengths, check_types
from ..world.captions import CONTENT, STYLE
from .crossed_tables import label_of_seed
from .image_pairs import Split
from .settings import check_counts

Truth = Literal["exact", "by name"]
AUTO, NEAREST = "auto", "nearest"
"""Words that the base is asked for: the nearest known word where one is near, and however far."""

EQUAL_PARAMETERS = ", equal parameters"
"""In a method's label: its rank is that of as many trained parameters as the reference's."""


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
    truth: Truth = "exact"
    """How true images are known. exact: the styles are functions of an image.  by name: they are the held-out hands;
    the true image is what a hand drew under the content's name."""
    style_images: int = 1
    """Images that one style adapter is trained on; a method's steps are those of one image (`updates_of_images`)."""
    images: int = 1
    """Images of each sum."""
    known: int = 6
    """Known contents, and known styles, with which each adapter is drawn alone."""
    seed: int = 0
    """Of training."""
    equal: Literal["rank", "parameters"] = "rank"
    """A method has the reference's rank, or the rank with the nearest count of trained parameters."""
    content_word: str = CONTENT
    """What a content is called in prompts: the placeholder, a known content, "nearest", the known content that is
    nearest to the image by the base's loss (`known_words`), or "auto", the same where one is near and else the
    placeholder."""
    style_word: str = STYLE
    content_filters: bool = False
    """Whether contents are also trained on filtered copies of their image (`filtered_images`)."""
    content_strength: float = 1.0
    """In sums; other than 1 they are all that is drawn."""
    forgetting: bool = False
    """Whether also images are drawn that ask for no adapter (`crossed_forgetting`)."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check the types, the counts, the words and the strength."""
        check_types(CrossedSettings, vars(self))
        check_counts(vars(self), "contents", "styles", "style_images", "images", "known")
        check_strengths([self.content_strength])
        words = [x for x in (self.content_word.strip(), self.style_word.strip()) if x not in (AUTO, NEAREST)]
        if "" in words or len({*words}) < len(words):
            given = f"content_word={self.content_word!r} and style_word={self.style_word!r}"
            raise ValueError(f"a content and a style need words of their own in prompts, got {given}")

    @property
    def folder(self) -> Path:
        """Of the results of one base, one split and as many contents, style images and known words."""
        hands = "-hands" * (self.truth == "by name")
        known = f"-known{self.known}" * (self.known != CrossedSettings.known)
        base = Path(os.path.abspath(self.base)).name
        return self.root / f"{base}-{self.split}-{self.contents}x{self.styles}{hands}{known}"

    def labels(self, spec: str) -> tuple[str, str, str]:
        """How rows call a method's content adapters, its style adapters and its sums."""
        size = EQUAL_PARAMETERS * (self.equal == "parameters")
        called = f"{self.content_word} " * (self.content_word != CONTENT) + "filtered " * self.content_filters
        content = f", {called}content" * bool(called)
        style = f", {self.style_word} style" * (self.style_word != STYLE)
        style += f" x{self.style_images}" * (self.style_images > 1)
        strength = f", content at {self.content_strength:g}" * (self.content_strength != 1)
        parts = content, style, content + style + strength
        of_content, of_style, of_sum = (label_of_seed(spec + size + x, self.seed) for x in parts)
        return of_content, of_style, of_sum
