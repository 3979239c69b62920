"""Training: one image in, one adapter file out."""

from .config_checks import check_config_fits_base as check_config_fits_base
from .distributed import is_rank_zero as is_rank_zero
from .distributed import world_size as world_size
from .losses import denoising_loss as denoising_loss
from .train_adapter import train as train
from .training_loop import Progress as Progress
