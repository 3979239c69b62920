"""The rank at which a method has as many trainable parameters as another method."""

from bisect import bisect_left
from functools import cache, partial

from ..families import Base
from ..initialisation_methods import METHODS
from ..injection.peft_methods import initialise_peft, parse_peft_method


def layer_shapes(base: Base, targets: str) -> list[tuple[int, int]]:
    """(o, i) of the layers that targets name."""
    return [(layer.out_features, layer.in_features) for layer in base.target_layers(targets).values()]


def rank_of_equal_size(
    base: Base, method: str, targets: str, reference_method: str, reference_targets: str, reference_rank: int
) -> int:
    """The rank at which a method's count of trainable parameters is nearest to that of the reference.

    Raises: ValueError: a method of PEFT's whose size does not grow with its rank, or that does not fit these layers.
    """
    wanted = trainable_parameter_count(base, reference_method, reference_targets, reference_rank)
    ranks = range(1, min(min(shape) for shape in layer_shapes(base, targets)) + 1)
    count = cache(partial(trainable_parameter_count, base, method, targets))
    if count(ranks[0]) == count(ranks[-1]):
        raise ValueError(f"no rank makes {method} larger or smaller: leave it out of equal parameters")
    above = min(bisect_left(ranks, wanted, key=count), len(ranks) - 1)
    return min(ranks[max(above - 1, 0) : above + 1], key=lambda rank: abs(count(rank) - wanted))


def trainable_parameter_count(base: Base, method: str, targets: str, rank: int) -> int:
    """Trainable parameters of a method on a base; PEFT's methods are injected to be counted, for some share parameters
    between layers."""
    if method in METHODS:
        return sum(METHODS[method].trainable_parameters(o, i, rank) for o, i in layer_shapes(base, targets))
    injected = initialise_peft(base.model, list(base.target_layers(targets)), parse_peft_method(method), rank, seed=0)
    try:
        return sum(factor.numel() for factor in injected.trainable_factors().values())
    finally:
        injected.detach()
