"""Names in help texts that come from tables: methods, merging rules, key names, presets of targets, tools."""

import re
from collections.abc import Callable

from ..layouts import LAYOUTS, TOOLS
from ..lora_keys import WRITTEN


def method_names() -> str:
    """Names for help texts: rows of METHODS."""
    from ..initialisation_methods import METHODS

    return ", ".join(METHODS)


def fusion_names() -> str:
    """Names for help texts: rows of FUSIONS, ways to bring a content and a style together."""
    from ..baselines import FUSIONS

    return ", ".join(FUSIONS)


def rule_summaries() -> str:
    """Names for help texts: merging rules with their parameters."""
    from ..merging import RULES
    from ..merging.rule_parameters import describe

    return "; ".join(describe(name, rule) for name, rule in RULES.items())


def preset_names() -> str:
    """Presets of targets of all families, each once."""
    return ", ".join(dict.fromkeys(name for layout in LAYOUTS.values() for name in layout.targets))


NAMES: dict[str, Callable[[], str]] = {
    "methods": method_names,
    "rules": rule_summaries,
    "fusions": fusion_names,
    "keys": lambda: ", ".join(WRITTEN),
    "presets": preset_names,
    "tools": lambda: ", ".join(TOOLS),
}
"""Placeholder -> what stands for it. Some tables load torch, so that they are read only when a verb's help is asked."""


def fill(text: str) -> str:
    """A help text with the placeholders of NAMES replaced."""
    return re.sub(rf"{{({'|'.join(NAMES)})}}", lambda found: NAMES[found[1]](), text)
