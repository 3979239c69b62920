"""`--network_module qrlora.networks.NAME` of kohya's trainers: their own `networks.NAME`, with frozen directions.

There is a module here for every module that the trainer has: `import qrlora.networks.lora_flux` imports the trainer's
`networks.lora_flux` and hands on what it holds, but for the functions that make networks.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

from ..trainers.kohya import delegated


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules of this package in the trainer's."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        own = fullname.startswith(f"{__name__}.")
        return importlib.machinery.ModuleSpec(fullname, self) if own else None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__.removeprefix("qrlora.")
        try:
            theirs = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in (name, "networks"):
                raise
            raise ModuleNotFoundError(
                f"{module.__name__} stands for {name} of sd-scripts or musubi-tuner, which is not there; "
                "run their own script, with its own networks.NAME after qrlora."
            ) from error
        module.__dict__.update(delegated(theirs))


sys.meta_path.append(_Finder())
