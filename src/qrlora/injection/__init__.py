"""Adapters on a live model: applied beside its linear layers, trained, extracted, detached."""

from .apply_adapter import adapter_names as adapter_names
from .apply_adapter import applied as applied
from .apply_adapter import apply as apply
from .apply_adapter import detach as detach
from .apply_adapter import extract as extract
from .apply_adapter import frozen_factors as frozen_factors
from .apply_adapter import initialise as initialise
from .apply_adapter import set_layer_strengths as set_layer_strengths
from .apply_adapter import set_strengths as set_strengths
from .apply_adapter import strengths as strengths
from .apply_adapter import trainable_factors as trainable_factors
from .apply_adapter import with_coefficients as with_coefficients
from .inject_adapter import InjectedAdapter as InjectedAdapter
from .inject_adapter import inject as inject
