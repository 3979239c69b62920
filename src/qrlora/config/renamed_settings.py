"""Settings that have been renamed: their old names in recipes, overrides, scripts and base folders, and in files."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from .type_checks import as_dict

RENAMED = {"decay": "lr_decay", "times": "timestep_sampling"}
"""Old name -> today's. The old ones are accepted with a DeprecationWarning until 0.3."""
ADDED = ("crop", "mask", "adapter_every", "draw_with")
"""Settings that came after files of format 1 were written."""

Kind = TypeVar("Kind", bound=type)


def with_new_names(kind: type, settings: Mapping[str, Any], stacklevel: int = 3) -> dict[str, Any]:
    """The settings under today's names; a DeprecationWarning for each that came under its old one.

    Args:    kind: the dataclass that they are for; an old name whose new one it does not have stays as it is.
    Raises:  ValueError: one setting under both of its names.
    """
    result: dict[str, Any] = {}
    for name, value in settings.items():
        new_name = new_setting_name(kind, name, stacklevel + 1)
        if new_name != name and new_name in settings:
            raise ValueError(f"{name} is the old name of {new_name}, and both are given: leave {name} out")
        result[new_name] = value
    return result


def new_setting_name(kind: type, name: str, stacklevel: int = 2) -> str:
    """Today's name of a setting; a DeprecationWarning if that is another one."""
    if name not in RENAMED or RENAMED[name] not in {field.name for field in dataclasses.fields(kind)}:
        return name
    return _warn_of_old_name("the setting", name, RENAMED[name], stacklevel + 1)


def accepts_old_names(renamed: Mapping[str, str], what: str = "the setting") -> Callable[[Kind], Kind]:
    """A decorator of dataclasses: the constructor takes old names of fields, and instances have them as attributes,
    with a warning each.

    `dataclasses.replace(config, OLD=value)` passes the new name, too, with the value so far: there OLD counts.

    Args: renamed: {old name: new name}.  what: the field is, in the warning.
    """

    def decorate(kind: Kind) -> Kind:
        init = kind.__init__
        old_names = {old: new for old, new in renamed.items() if new in {x.name for x in dataclasses.fields(kind)}}

        @functools.wraps(init)
        def init_with_old_names(self: Any, *positional: Any, **values: Any) -> None:
            for old in old_names.keys() & values.keys():
                values[_warn_of_old_name(what, old, old_names[old], stacklevel=3)] = values.pop(old)
            init(self, *positional, **values)

        setattr(kind, "__init__", init_with_old_names)  # noqa: B010 - pyright refuses the plain assignment
        for old, new in old_names.items():
            setattr(kind, old, property(functools.partial(_by_old_name, what, old, new)))
        return kind

    return decorate


def _by_old_name(what: str, old: str, new: str, instance: Any) -> Any:
    return getattr(instance, _warn_of_old_name(what, old, new, stacklevel=3))


def _warn_of_old_name(what: str, old: str, new: str, stacklevel: int) -> str:
    """The new name, after a warning."""
    warnings.warn(f"{what} {old} is now {new}; the old name goes with 0.3", DeprecationWarning, stacklevel=stacklevel)
    return new


def as_stored_dict(config: Any) -> dict[str, Any]:
    """As `as_dict`, under the names by which adapter headers and checkpoints of format 1 hold the settings: the first
    ones, so that files, and runs that a checkpoint continues, are the same before and after a renaming. Settings of
    ADDED that are not set are left out, so that they are the same as before there were any; a training's slot, whose
    default hangs on its role, is always there."""
    first_names = {new: old for old, new in RENAMED.items()}
    values = {name: value for name, value in as_dict(config).items() if value or name not in ADDED}
    if "slot" in values:
        values["slot"] = config.orthogonal_slot
    return {first_names.get(name, name): value for name, value in values.items()}
