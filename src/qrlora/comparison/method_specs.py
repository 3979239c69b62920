"""Method specs as users write them, NAME:[ROLE/]SETTING=VALUE:..., such as "lora:rank=8:style/steps=80".

"rule=ties" among the settings merges the method's adapters by that rule.
"""

import dataclasses
from typing import Any

from ..baselines import FusionMethod
from ..baselines.fusion_table import RULE, method_of_adapters
from ..config import TrainConfig
from ..config.renamed_settings import new_setting_name
from ..config.type_checks import check_types, parse_override
from .run_job import BOUNDS, find_fusion_or_bound
from .settings import check_counts
from .training_settings import ROLES, SHARED_SETTINGS

SPEC_SETTINGS = (*SHARED_SETTINGS, "learning_rate", "optimizer", "min_snr_gamma")
"""The settings of TrainConfig that a spec may change: for both roles, or for one as "NAME:style/SETTING=VALUE"."""


def parse_method_spec(spec: str, bounds: bool = False) -> FusionMethod:
    """The fusion method that a spec names, with the spec's settings in its `learn`.

    Args:   bounds: whether "none" and "oracle" may be named.
    Raises: ValueError: no such method, role, setting or merging rule, or a wrong value.
    """
    name, changes = _name_and_changes(spec)
    if name in BOUNDS and not bounds:
        raise ValueError(f"{name!r} is in every table: leave it out of the methods")
    fusion = find_fusion_or_bound(name)
    by_role: dict[str, dict[str, Any]] = {role: dict(fusion.learn.get(role, {})) for role in ROLES}
    done = set()
    for change in sorted(changes, key=lambda x: "/" in x.partition("=")[0]):  # those of one role after those of both
        key, _, text = change.partition("=")
        if key in done:
            raise ValueError(f"{spec}: {key} is set twice")
        done.add(key)
        role, slash, key = key.rpartition("/")
        if slash and role not in ROLES:
            raise ValueError(f"{spec}: {role!r} is no role; before a slash stands {' or '.join(ROLES)}")
        key = new_setting_name(TrainConfig, key)
        if key not in SPEC_SETTINGS:
            known = ", ".join((*SPEC_SETTINGS, "rule"))
            raise ValueError(f"{spec}: {key!r} is no setting of a method here; choose among {known}")
        for changed in [role] if role else ROLES:
            by_role[changed][key] = parse_override(TrainConfig, key, text)
    for settings in by_role.values():
        check_types(TrainConfig, settings)
        check_counts(settings, "rank", "steps", "batch_size")
    return dataclasses.replace(fusion, learn={**fusion.learn, **by_role})


def spec_of_adapters(spec: str) -> str:
    """The spec of the method that trains a spec's adapters, whatever merges them: "lora:rank=8" of "ties:rank=8", "qr"
    of "qr:rule=ties". Raises: ValueError: no such method or rule."""
    name, changes = _name_and_changes(spec)
    return ":".join([name if name in BOUNDS else method_of_adapters(name), *changes])


def _name_and_changes(spec: str) -> tuple[str, list[str]]:
    """The name of a spec's fusion method, with its kind of PEFT's and its merging rule, and the changes of settings."""
    name, *changes = spec.split(":")
    if name == "peft" and changes:
        name = f"peft:{changes.pop(0)}"
    rules = [x for x in changes if x.startswith(RULE[1:])]
    if len(rules) > 1:
        raise ValueError(f"{spec}: one rule merges two adapters, and here are {len(rules)}")
    return name + "".join(f":{x}" for x in rules), [x for x in changes if x not in rules]
