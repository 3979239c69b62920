"""How each backbone encodes, predicts and decodes, and opening a base of one. A new family is a file and a row in
FAMILIES, beside those in layouts/."""

from ..devices import choose_device, choose_dtype
from .base_model import Base
from .condition import Condition, SizeConditioning
from .family import Family
from .family_table import FAMILIES
from .library_messages import SlowDevice
from .opening import open_base

__all__ = [
    "FAMILIES",
    "Base",
    "Condition",
    "Family",
    "SizeConditioning",
    "SlowDevice",
    "choose_device",
    "choose_dtype",
    "open_base",
]
