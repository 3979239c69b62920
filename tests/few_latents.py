"""A training set of a few latents of noise: a step of pre-training on it takes a second."""

import torch

from qrlora.world import pretraining_set
from qrlora.world.base_architectures import AUTOENCODERS
from qrlora.world.drawings import SIZE


def few_latents(base):
    """A training set of noise with rows of every kind."""
    shape, side = AUTOENCODERS[base], SIZE // AUTOENCODERS[base].reduction
    latents = torch.randn(8, shape.channels, side, side, generator=torch.Generator().manual_seed(0)).half()
    kinds = {kind: (2 * k, 2 * k + 2) for k, kind in enumerate(pretraining_set.BATCH_SHARES)}
    style = torch.tensor([0, 0, 1, 2, 3, 4, -1, -1])
    return pretraining_set.TrainingSet(latents, torch.arange(8), torch.zeros(8, dtype=torch.long), style, kinds)
