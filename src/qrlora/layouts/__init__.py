"""What the names of each backbone's layers are: one record for each family, without torch."""

from .layout import Layout, Named, Reader, Variant
from .layout_table import LAYOUTS, STYLES, TOOLS, VARIANTS, excluded, layouts_of, told

__all__ = [
    "LAYOUTS",
    "STYLES",
    "TOOLS",
    "VARIANTS",
    "Layout",
    "Named",
    "Reader",
    "Variant",
    "excluded",
    "layouts_of",
    "told",
]
