"""What a training at full size takes, before a download: memory counted from shapes, seconds measured here."""

from .estimate_report import CARDS as CARDS
from .estimate_report import MARGIN as MARGIN
from .estimate_report import RESERVED as RESERVED
from .estimate_report import How as How
from .estimate_report import Report as Report
from .estimate_training import estimate as estimate
from .training_task import Stage as Stage
