"""The known-answer world: things, styles, their true pictures, judges, and the base models that know them."""

from .atlas import contents as contents
from .atlas import held_out_contents as held_out_contents
from .atlas import known_contents as known_contents
from .atlas import true_pictures as true_pictures
from .captions import caption as caption
from .styles import ALL_STYLES as ALL_STYLES
from .styles import HELD_OUT_STYLES as HELD_OUT_STYLES
from .styles import STYLES as STYLES
