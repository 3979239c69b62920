"""The TrainConfig settings of each compared method: rank, layers, steps and batch equal for all, the rest its own."""

from typing import Any

from ..baselines import FusionMethod
from ..families import Base
from ..world.captions import STYLE
from .rank_matching import layer_shapes, rank_of_equal_size
from .settings import ComparisonSettings

REFERENCE_METHOD = "qr"
"""The method whose rank, steps and layers on a base all other methods are given."""
SHARED_SETTINGS = ("rank", "targets", "steps", "lr_decay", "batch_size", "timestep_sampling", "resolution")
ROLES = ("content", "style")


def training_settings(
    base: Base, spec: str, fusion: FusionMethod, settings: ComparisonSettings
) -> dict[str, dict[str, Any]]:
    """{role: settings of TrainConfig} of the adapters that a method needs; empty for the lower bound "none"."""
    if spec == "none":
        return {}
    roles: tuple[Any, ...] = ROLES if fusion.trains_style_adapter and spec != "oracle" else ("content",)
    return {role: _settings_of_role(base, role, spec, fusion, settings) for role in roles}


def _settings_of_role(
    base: Base, role: Any, spec: str, fusion: FusionMethod, settings: ComparisonSettings
) -> dict[str, Any]:
    """The training settings of a compared method's role: the reference's shared ones, the method's own learning rate,
    and what its row or its spec sets."""
    default = base.defaults.for_run(role, REFERENCE_METHOD)
    chosen: dict[str, Any] = {name: getattr(default, name) for name in SHARED_SETTINGS}
    chosen |= {name: value for name in ("rank", "steps") if (value := getattr(settings, name)) is not None}
    if spec == "oracle":
        chosen |= _oracle_targets_and_steps(base, chosen, settings.steps)
    reference = dict(chosen)
    own = fusion.settings(role)
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


def _oracle_targets_and_steps(base: Base, content: dict[str, Any], steps: int | None) -> dict[str, Any]:
    """Targets and steps of the oracle's training: the layers of both roles, for the sum of their steps."""
    style = base.defaults.for_run("style", REFERENCE_METHOD)
    endings = [base.family.targets.get(x) or tuple(x.split(",")) for x in (content["targets"], style.targets)]
    union = dict.fromkeys(ending.strip() for of_role in endings for ending in of_role)
    return {"targets": ",".join(union), "steps": content["steps"] + (steps or style.steps)}
