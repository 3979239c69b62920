"""The TrainConfig settings of each compared method: rank, layers, steps and batch equal for all, the rest its own."""

from collections.abc import Mapping
from typing import Any

from ..baselines import FusionMethod
from ..families import Base
from ..world.captions import STYLE
from .rank_matching import layer_shapes, rank_of_equal_size, trainable_parameter_count
from .settings import ComparisonSettings

REFERENCE_METHOD = "qr"
"""The method whose rank, steps and layers on a base all other methods are given."""
SHARED_SETTINGS = ("rank", "targets", "steps", "lr_decay", "batch_size", "timestep_sampling", "resolution")
ROLES = ("content", "style")


def training_settings(
    base: Base, spec: str, fusion: FusionMethod, settings: ComparisonSettings
) -> dict[str, dict[str, Any]]:
    """{role: settings of TrainConfig} of the adapters that a method needs; empty for the lower bound "none"."""
    if fusion.name == "none":
        return {}
    roles: tuple[Any, ...] = ROLES if fusion.trains_style_adapter and fusion.name != "oracle" else ("content",)
    return {role: _settings_of_role(base, role, spec, fusion, settings) for role in roles}


def _settings_of_role(
    base: Base, role: Any, spec: str, fusion: FusionMethod, settings: ComparisonSettings
) -> dict[str, Any]:
    """The training settings of a compared method's role: the reference's shared ones, the method's own learning rate,
    and what its row or its spec sets."""
    default = base.defaults.for_run(role, REFERENCE_METHOD)
    chosen: dict[str, Any] = {name: getattr(default, name) for name in SHARED_SETTINGS}
    chosen |= {name: value for name in ("rank", "steps") if (value := getattr(settings, name)) is not None}
    own = fusion.settings(role)
    if fusion.name == "oracle":
        chosen |= _oracle_targets(base, chosen["targets"])
        own["steps"] = _oracle_steps(base, fusion, settings.steps)
    reference = dict(chosen)
    chosen |= {"seed": settings.first_seed, "dtype": settings.dtype, **own}
    if role == "style" and settings.style_word != STYLE:
        chosen["trigger"] = settings.style_word
    method = chosen.setdefault("method", REFERENCE_METHOD)
    chosen.setdefault("learning_rate", base.defaults.for_run(role, method).learning_rate)
    if settings.equal == "parameters" and "rank" not in own:
        wanted = (REFERENCE_METHOD, reference["targets"], reference["rank"])
        chosen["rank"] = rank_of_equal_size(base, method, chosen["targets"], *wanted)
    largest = min(min(shape) for shape in layer_shapes(base, chosen["targets"]))
    if chosen["rank"] > largest:
        raise ValueError(f"rank {chosen['rank']} is above {largest}, the smaller side of a layer that {spec} trains")
    return chosen


def _oracle_targets(base: Base, targets: str) -> dict[str, str]:
    """Targets of the oracle's training: the layers of both roles."""
    style = base.defaults.for_run("style", REFERENCE_METHOD)
    endings = [base.family.targets.get(x) or tuple(x.split(",")) for x in (targets, style.targets)]
    union = dict.fromkeys(ending.strip() for of_role in endings for ending in of_role)
    return {"targets": ",".join(union)}


def _oracle_steps(base: Base, fusion: FusionMethod, steps: int | None) -> int:
    """Steps of the oracle's training: the sum of both roles'."""
    default = {role: steps or base.defaults.for_run(role, REFERENCE_METHOD).steps for role in ROLES}
    return sum(fusion.settings(role).get("steps", default[role]) for role in ROLES)


def ranks_and_trained_parameters(base: Base, by_role: Mapping[str, Mapping[str, Any]]) -> tuple[list[int], int]:
    """The rank of each of a method's adapters, and the count of their trained parameters together.

    Args: by_role: of `training_settings`.
    """
    of_roles = [(x["method"], x["targets"], x["rank"]) for x in by_role.values()]
    return [rank for _, _, rank in of_roles], sum(trainable_parameter_count(base, *x) for x in of_roles)
