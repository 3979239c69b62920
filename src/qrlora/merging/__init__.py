"""Merging rules: several adapters of one base model become one."""

from .merge_adapters import OLD_RULES as OLD_RULES
from .merge_adapters import RULES as RULES
from .merge_adapters import find_rule as find_rule
from .merge_adapters import merge as merge
from .merge_adapters import project as project
from .sum_and_stack import kept_fraction_of_update as kept_fraction_of_update
