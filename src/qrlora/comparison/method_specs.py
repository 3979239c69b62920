"""Method specs as users write them, NAME:[ROLE/]SETTING=VALUE:..., such as "lora:rank=8:style/steps=80"."""

import dataclasses
from typing import Any

from ..baselines import FusionMethod
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
    Raises: ValueError: no such method, role or setting, or a wrong value.
    """
    name, *changes = spec.split(":")
    if name in BOUNDS and not bounds:
        raise ValueError(f"{name!r} is in every table: leave it out of the methods")
    if name == "peft" and changes:
        name = f"peft:{changes.pop(0)}"
    fusion = find_fusion_or_bound(name)
    by_role: dict[str, dict[str, Any]] = {role: dict(fusion.learn.get(role, {})) for role in ROLES}
    for change in changes:
        key, _, text = change.partition("=")
        role, slash, key = key.rpartition("/")
        if slash and role not in ROLES:
            raise ValueError(f"{spec}: {role!r} is no role; before a slash stands {' or '.join(ROLES)}")
        key = new_setting_name(TrainConfig, key)
        if key not in SPEC_SETTINGS:
            raise ValueError(f"{spec}: {key!r} is no setting of a method here; choose among {', '.join(SPEC_SETTINGS)}")
        for changed in [role] if role else ROLES:
            by_role[changed][key] = parse_override(TrainConfig, key, text)
    for settings in by_role.values():
        check_types(TrainConfig, settings)
        check_counts(settings, "rank", "steps", "batch_size")
    return dataclasses.replace(fusion, learn={**fusion.learn, **by_role})
