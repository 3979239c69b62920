"""Modules of `qrlora.networks` that are made of the trainer's own when they are imported."""

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

from ..trainers.kohya import frozen_module

PACKAGE = "qrlora.networks."


class TrainerModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `qrlora.networks.NAME` in the trainer's `networks.NAME`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(fullname, self) if fullname.startswith(PACKAGE) else None

    def exec_module(self, module: ModuleType) -> None:
        """Fill `qrlora.networks.NAME` with the trainer's own `networks.NAME`, its networks frozen."""
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
        module.__dict__.update(frozen_module(theirs))


sys.meta_path.append(TrainerModules())  # behind Python's own, which finds what is in this folder
