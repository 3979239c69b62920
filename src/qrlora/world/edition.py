"""Which edition of the synthetic benchmark a base belongs to: its images had 64 pixels a side at first, 128 since."""

from ..families import Base
from .drawings import SIZE


def check_edition_of_base(base: Base) -> None:
    """Refuse a base that was pre-trained on the benchmark's images of another size than today's.

    Only bases that were pre-trained at one size (`Base.always_uncropped`) can be of an edition; others draw any size.

    Raises: ValueError: it was.
    """
    side = base.defaults.resolution
    if base.always_uncropped and side != SIZE:
        raise ValueError(
            f"{base.name} was pre-trained on images of {side} x {side} pixels, another edition of the synthetic "
            f"benchmark than this version's, whose images have {SIZE} x {SIZE}: take a base of today's, such as "
            "tiny-flux, or the version of qrlora that the base came with"
        )
