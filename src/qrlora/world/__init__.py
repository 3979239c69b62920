"""The synthetic benchmark: contents, styles, their true images, classifiers, and the base models that know them."""

from .captions import caption as caption
from .drawings import contents as contents
from .drawings import held_out_contents as held_out_contents
from .drawings import known_contents as known_contents
from .ground_truth import true_images as true_images
from .ground_truth import true_pictures as true_pictures
from .styles import ALL_STYLES as ALL_STYLES
from .styles import HELD_OUT_STYLES as HELD_OUT_STYLES
from .styles import STYLES as STYLES
