"""A row of images with the classifiers' predictions and the true labels, as contact sheets show it."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from .classifiers import Classification, classify
from .image_tensors import tensor_from_pil


@dataclass(frozen=True)
class ClassifiedImages:
    """Images of one kind with a prediction for each, and their true labels ("": unknown)."""

    title: str
    images: Sequence[Image.Image]
    predictions: Sequence[Classification]
    content: str = ""
    style: str = ""

    def correct_labels(self, prediction: Classification) -> tuple[bool | None, bool | None]:
        """Whether the classifiers' prediction agrees with an image's true content and with its true style; None where
        that label is unknown."""
        labelled = (prediction.content, self.content), (prediction.style, self.style)
        content, style = (predicted == true if true else None for predicted, true in labelled)
        return content, style

    def is_correct(self, prediction: Classification) -> bool | None:
        """Whether the classifiers' prediction agrees with every known label of an image; None if no label is known."""
        known = [correct for correct in self.correct_labels(prediction) if correct is not None]
        return all(known) if known else None


def classify_images(title: str, images: Sequence[Image.Image], content: str = "", style: str = "") -> ClassifiedImages:
    """Images with the classifiers' predictions. Args: content, style: the true labels; "": unknown."""
    return ClassifiedImages(title, images, classify(tensor_from_pil(images)), content, style)
