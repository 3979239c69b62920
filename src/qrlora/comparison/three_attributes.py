"""Three attributes added: a content, a style and a frame, whose adapters are trained apart and crossed.

The counterpart of the paper's figure 9 with an exact truth: a frame covers the border of an image, over its style or
beneath it (`world.frames`).  Style and frame adapters share the style's layers.  What is in the folder is not made
again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from ..adapter import Adapter
from ..evaluation import ssim
from ..initialisation_methods import METHODS
from ..sampling import generate
from ..world.captions import CONTENT, STYLE, caption, known_words
from ..world.frames import FRAMES, UNFRAMED, framed_images
from ..world.image_tensors import tensor_from_pil
from ..world.nearest_attributes import attributes_right
from .crossed_adapters import CrossedAdapters, evenly
from .crossed_settings import CrossedSettings
from .crossed_tables import ScoredMethod, scored_line
from .method_specs import parse_method_spec
from .row_file import RowFile
from .statistics import crossed_table

LABELS = ("method", "part", "content", "style", "frame", "image", "seed")
SCORES = ("content right", "style right", "frame right", "all", "ssim")
ROWS = "sums.csv"
WITHOUT_FRAME, FRAME_ALONE, SUM_OF_THREE = (
    "content and style, no frame",
    "known content, known style, frame",
    "content, style and frame",
)
PARTS = {
    FRAME_ALONE: "the frame's adapter alone, with words that the base knows",
    WITHOUT_FRAME: "the content's and the style's adapter, as without a third",
    SUM_OF_THREE: "all three adapters",
}


class ThreeAttributes:
    """The drawings of contents in styles in frames and their scores: the rows of the folder of `CrossedSettings`."""

    def __init__(self, settings: CrossedSettings, frames: int) -> None:
        """Args: frames: so many of them. Raises: ValueError: more than there are."""
        self.settings, self.adapters = settings, CrossedAdapters(settings)
        names = evenly([name for name in FRAMES if name != UNFRAMED], frames)
        self.frames = list(zip(names, evenly(self.adapters.shown, frames, 7), strict=True))
        known = self.adapters.known_contents, evenly(known_words("style"), settings.known)
        self.known = list(zip(*known, strict=True))
        self.rows = RowFile(settings.folder / ROWS, LABELS, SCORES)

    def run(self, spec: str) -> None:
        """Train all adapters of a method and draw all its images, but for those that are there.

        Raises: ValueError: no such method or setting, or one that combines two adapters otherwise than by their sum.
        """
        self.adapters.method(spec)
        check_sum(spec)
        alone = replace(self.settings, content_word=CONTENT, style_word=STYLE).labels(spec)[2]
        both = self.settings.labels(spec)[2]
        frames = {frame: self.adapters.frame_adapter(spec, frame, shown).adapter for frame, shown in self.frames}
        for frame, adapter in frames.items():
            for k, (content, style) in enumerate(self.known):
                labels = (alone, FRAME_ALONE, content, style, frame, "", k)
                self._draw(labels, caption(content, style), [adapter])
        for style, shown in self.adapters.styles:
            of_style, image = self.adapters.style_adapter(spec, style, shown), "+".join(shown)
            for content in self.adapters.contents:
                of_content = self.adapters.content_adapter(spec, content)
                prompt, two = caption(of_content.word.word, of_style.word.word), [of_content.adapter, of_style.adapter]
                self._draw((both, WITHOUT_FRAME, content, style, UNFRAMED, image, 0), prompt, two)
                for frame, adapter in frames.items():
                    self._draw((both, SUM_OF_THREE, content, style, frame, image, 0), prompt, [*two, adapter])

    def three_image(self, spec: str, k: int) -> Image.Image:
        """A method's image of the k-th content, style and frame, seed 0, as in the rows."""
        content = self.adapters.content_adapter(spec, self.adapters.contents[k])
        style = self.adapters.style_adapter(spec, *self.adapters.styles[k])
        three = [content.adapter, style.adapter, self.adapters.frame_adapter(spec, *self.frames[k]).adapter]
        return generate(self.adapters.base, caption(content.word.word, style.word.word), three, seed=0)[0]

    def _draw(self, labels: tuple[Any, ...], prompt: str, adapters: Sequence[Adapter]) -> None:
        """Draw the sum of adapters at strength 1, score it and write its row, if it is not there yet."""
        if self.rows.has(labels):
            return
        _, _, content, style, frame, _, seed = labels
        images = tensor_from_pil(generate(self.adapters.base, prompt, adapters, seed=seed))
        right = attributes_right(images, content, style, frame)
        orders = [framed_images([content], style, frame, beneath) for beneath in (False, True)]
        likeness = max(float(ssim(images, truth)) for truth in orders)
        self.rows.append([(*labels, *(float(right[x]) for x in ("content", "style", "frame", "all")), likeness)])


def check_sum(spec: str) -> None:
    """Raises ValueError: a method that combines two adapters otherwise than by their sum."""
    if parse_method_spec(spec, bounds=True).name not in METHODS:
        raise ValueError(f"{spec} is no sum of adapters, and its rule is for two: choose among {', '.join(METHODS)}")


def scored_sums(rows: Sequence[Mapping[str, str]]) -> list[ScoredMethod]:
    """All lines of the table, in the order of the parts and the rows, with the differences to a part's first method;
    the intervals resample contents, style images and frames."""
    lines = []
    for part in PARTS:
        methods: dict[str, dict[tuple[str, ...], Mapping[str, str]]] = {}
        for row in rows:
            if row["part"] == part:
                methods.setdefault(row["method"], {})[_cell(row)] = row
        tables = {method: {x: _table(cells, x) for x in SCORES} for method, cells in methods.items()}
        lines += [scored_line(part, method, table) for method, table in tables.items()]
        for method in [*methods][1:]:
            first = next(iter(methods))
            if methods[method].keys() == methods[first].keys():
                less = {x: tables[method][x] - tables[first][x] for x in SCORES}
                lines.append(scored_line(part, method, less, first))
    return lines


def _cell(row: Mapping[str, str]) -> tuple[str, ...]:
    """A row's content, style image and frame; known words come in pairs."""
    if not row["image"]:
        return f"{row['content']} in {row['style']}", "", row["frame"]
    return row["content"], f"{row['style']} {row['image'].split('+')[0]}", row["frame"]


def _table(cells: Mapping[tuple[str, ...], Mapping[str, str]], score: str) -> np.ndarray:
    """(contents, style images, frames): one score; NaN where there is none."""
    return crossed_table({cell: float(row[score]) for cell, row in cells.items()})
