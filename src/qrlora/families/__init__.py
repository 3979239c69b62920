"""How each backbone encodes, predicts and decodes, and opening a base of one. A new family is a file and a row in
FAMILIES, beside those in layouts/."""

from ..devices import choose_device, choose_dtype
from .base_model import Base
from .family import Condition, Family, SizeConditioning
from .family_table import FAMILIES
from .library_messages import SlowDevice
from .opening import open_base
from .pipeline_folder import read_json

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
    "read_json",
]
