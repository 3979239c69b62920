"""Ways to combine a content and a style: the paper's and those that it is compared with."""

from .fusion_method import FusionInputs as FusionInputs
from .fusion_method import FusionMethod as FusionMethod
from .fusion_method import FusionResult as FusionResult
from .fusion_method import TrainingImage as TrainingImage
from .fusion_table import FUSIONS as FUSIONS
from .fusion_table import fusion as fusion
