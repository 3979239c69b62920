"""Presets of targets that were renamed: the old names still work, in recipes, `qrlora.json`, commands and calls."""

import warnings

DEPRECATED_PRESETS = {"words": "text-stream", "picture": "image-stream", "time": "time-embedding"}
"""Old name of a preset of targets -> its name now; the old ones go with 0.3."""


def current_preset(targets: str, stacklevel: int = 2) -> str:
    """A preset's name now, with a DeprecationWarning for an old one; any other targets as they are."""
    new = DEPRECATED_PRESETS.get(targets)
    if new is None:
        return targets
    message = f"targets={targets} is now targets={new}; the old name goes with 0.3"
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel + 1)
    return new
