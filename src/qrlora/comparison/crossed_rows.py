"""The rows of a crossed comparison: an image is drawn, scored and written unless its row is in the file."""

from collections.abc import Sequence
from pathlib import Path

from ..evaluation import ssim
from ..world.image_tensors import tensor_from_pil
from .crossed_adapters import PLAIN, Word
from .crossed_tables import LABELS, LEAKS, SCORES, VALUES
from .decomposition import DecomposedPrompt, Draw, draw_and_score
from .row_file import RowFile

NO_WORD = Word("")


class CrossedRows(RowFile):
    """rows.csv of a crossed comparison's folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "rows.csv", LABELS, VALUES)

    def draw(
        self,
        method: str,
        asked: Sequence[DecomposedPrompt],
        draw: Draw,
        image: str = "",
        words: tuple[Word, Word] = (NO_WORD, NO_WORD),
        leaks: tuple[str, str] | None = None,
        base_images: Draw | None = None,
    ) -> None:
        """Draw and score those images of a method that are not there yet, and write their rows.

        Args: image: the column of that name.  words: the content's and the style's.  leaks: a content and a style that
              should not show; None: there is neither.  base_images: draws the base's own images, which those of this
              method are compared with.
        """
        left = [x for x in asked if not self.has(_row_labels(method, x, image))]
        if not left:
            return
        drawn = draw_and_score(left, draw, leaks or (left[0].content, PLAIN))
        preserved: list[float | None] = [None] * len(left)
        if base_images is not None:
            own = base_images([x.prompt for x in left], [x.seed for x in left])
            preserved = ssim(tensor_from_pil([found for found, _ in drawn]), tensor_from_pil(own)).tolist()
        self.append(
            [
                *_row_labels(method, x, image),
                *(scores[name] for name in SCORES),
                *(scores[name] if leaks else None for name in LEAKS),
                *(value for word in words for value in (word.known, word.loss)),
                likeness,
            ]
            for x, (_, scores), likeness in zip(left, drawn, preserved, strict=True)
        )


def _row_labels(method: str, x: DecomposedPrompt, image: str) -> tuple[str, ...]:
    """The LABELS of a row of a crossed comparison."""
    return method, x.part, x.content, x.style, image, str(x.seed)
