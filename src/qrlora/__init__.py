"""QR-LoRA (arXiv 2507.04599): content and style adapters that add, from one picture each.

Public names are imported when they are first used, so that `import qrlora` costs nothing. The method on a module of
your own is `qrlora.inject(model, targets=..., rank=...)`; `qrlora.injection` has what else can be done with adapters on
a live model.
"""

import importlib
import sys
import warnings
from typing import TYPE_CHECKING, Any

if sys.version_info < (3, 11):  # noqa: UP036 - pip keeps to requires-python, a checkout on the path does not
    raise ImportError(f"qrlora needs Python 3.11 or newer, this is {sys.version.split()[0]} in {sys.prefix}")

from .optional_dependencies import MissingExtraFinder

if TYPE_CHECKING:
    from .adapter import Adapter as Adapter
    from .adapter import Header as Header
    from .adapter import Pair as Pair
    from .analysis import similarity as similarity
    from .analysis import trainable_parameters as trainable_parameters
    from .analysis import update_norms as update_norms
    from .basis import Basis as Basis
    from .basis import compute_basis as compute_basis
    from .config import SampleConfig as SampleConfig
    from .config import TrainConfig as TrainConfig
    from .config import read_recipe as read_recipe
    from .families import open_base as open_base
    from .files import load as load
    from .files import read_header as read_header
    from .files import save as save
    from .initialisation_methods import METHODS as METHODS
    from .injection import inject as inject
    from .merging import RULES as RULES
    from .merging import merge as merge
    from .sampling import generate as generate
    from .sampling import grid as grid
    from .trainers.peft import freeze as freeze
    from .training import train as train

_EXPORTS = {
    "adapter": ("Adapter", "Header", "Pair"),
    "analysis": ("similarity", "trainable_parameters", "update_norms"),
    "basis": ("Basis", "compute_basis"),
    "config": ("SampleConfig", "TrainConfig", "read_recipe"),
    "families": ("open_base",),
    "files": ("load", "read_header", "save"),
    "injection": ("inject",),
    "merging": ("RULES", "merge"),
    "initialisation_methods": ("METHODS",),
    "sampling": ("generate", "grid"),
    "trainers.peft": ("freeze",),
    "training": ("train",),
}
"""Module -> the public names that it defines."""
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

RENAMED = {"attach": "inject", "energy": "update_norms"}
"""Old public name -> its new one."""

__version__ = "0.2.0"
__all__ = sorted(_MODULE_OF)  # pyright: ignore[reportUnsupportedDunderAll]

if not any(isinstance(finder, MissingExtraFinder) for finder in sys.meta_path):
    sys.meta_path.insert(0, MissingExtraFinder())


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used; an old name with a DeprecationWarning."""
    if new := RENAMED.get(name):
        warnings.warn(
            f"qrlora.{name} is now qrlora.{new}; the old name goes with 0.3", DeprecationWarning, stacklevel=2
        )
        return __getattr__(new)
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'qrlora' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    return globals().setdefault(name, value)  # a module of that name, which Python has put there, stays


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
