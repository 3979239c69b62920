"""Settings of a run: dataclasses, TOML recipes, `name=value` overrides."""

from .keyword_settings import config_from_arguments as config_from_arguments
from .recipe import read_recipe as read_recipe
from .renamed_settings import as_stored_dict as as_stored_dict
from .settings import TRIGGERS as TRIGGERS
from .settings import FamilyDefaults as FamilyDefaults
from .settings import SampleConfig as SampleConfig
from .settings import TrainConfig as TrainConfig
from .type_checks import as_dict as as_dict
