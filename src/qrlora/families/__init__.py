"""How each backbone encodes, predicts and decodes, and opening a base of one. A new family is a file and a row in
FAMILIES, beside those in layouts/."""

from ..devices import choose_device, number_type
from .base import Base
from .folder import read_json
from .messages import SlowDevice
from .opening import open_base
from .record import Condition, Family, Framing
from .table import FAMILIES

__all__ = [
    "FAMILIES",
    "Base",
    "Condition",
    "Family",
    "Framing",
    "SlowDevice",
    "choose_device",
    "number_type",
    "open_base",
    "read_json",
]
