"""What the names of each backbone's layers are: one record for each family, without torch."""

from .layout import Layout, Named, Reader, Variant
from .layout_table import LAYOUTS, STYLES, TOOLS, VARIANTS, excluded, layout_of_metadata, layouts_of
from .target_presets import DEPRECATED_PRESETS, current_preset

__all__ = [
    "DEPRECATED_PRESETS",
    "LAYOUTS",
    "STYLES",
    "TOOLS",
    "VARIANTS",
    "Layout",
    "Named",
    "Reader",
    "Variant",
    "current_preset",
    "excluded",
    "layouts_of",
    "layout_of_metadata",
]
