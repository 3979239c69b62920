"""LAYOUTS: every backbone whose names we know, and which of them a file is of. A new one is a file and a row here."""

from collections.abc import Iterable, Mapping

from .flux import FLUX
from .flux2 import FLUX2
from .krea2 import KREA2
from .layout import Layout, Variant
from .qwen_image import QWEN_IMAGE
from .qwen_image_21 import QWEN_IMAGE_21
from .sd3 import SD3
from .sd15 import SD15
from .sdxl import SDXL
from .wan import WAN
from .z_image import Z_IMAGE

LAYOUTS: dict[str, Layout] = {
    layout.family: layout for layout in (SDXL, SD3, FLUX, SD15, QWEN_IMAGE, Z_IMAGE, FLUX2, KREA2, WAN, QWEN_IMAGE_21)
}

VARIANTS: dict[str, Variant] = {short: variant for x in LAYOUTS.values() for short, variant in x.variants.items()}
"""Short name -> public model, of every family."""
STYLES: tuple[str, ...] = tuple(dict.fromkeys(style for x in LAYOUTS.values() for style in x.written))
"""The styles of names that we write for one family or another."""
TOOLS: tuple[str, ...] = tuple(dict.fromkeys(tool for x in LAYOUTS.values() for tool in x.tools))
"""The tools that have a row for one family or another."""


def layouts_of(names: Iterable[str]) -> list[Layout]:
    """The backbones that have every one of these names; none for no names."""
    names = list(names)
    return [x for x in LAYOUTS.values() if names and all(map(x.read, names))]


def layout_of_metadata(metadata: Mapping[str, str]) -> Layout | None:
    """The row of LAYOUTS that a file's metadata name; None: no one, or one that is not known here."""
    for word in _words(metadata):
        for layout in LAYOUTS.values():
            if word.startswith(layout.versions) and not word.startswith(layout.look_alikes or ("\0",)):
                return layout
    return None


def excluded(layout: Layout, metadata: Mapping[str, str]) -> bool:
    """Whether a file's metadata names another model, whose layers have a backbone's names."""
    return any(word.startswith(layout.look_alikes) for word in _words(metadata)) if layout.look_alikes else False


def _words(metadata: Mapping[str, str]) -> list[str]:
    """What tools write into metadata of the model that a LoRA is of."""
    return [metadata[x].lower() for x in ("ss_base_model_version", "modelspec.architecture") if metadata.get(x)]
