"""The least time that a program can take on its chips: a bound, not a forecast.

The longest of three: its matrix products at the chip's peak, the bytes that its memory has to give,
and the bytes that have to leave a chip, each as if nothing else took time. Real steps take longer.
"""

from __future__ import annotations

import dataclasses

from sleeplm.plan.chips import Chip


@dataclasses.dataclass(frozen=True)
class Bound:
    """Seconds of one call at least, by what they are spent on."""

    compute: float
    memory: float
    links: float

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory, self.links)

    @property
    def by(self) -> str:
        """What bounds it: ``compute``, ``memory`` or ``links``."""
        return max(("compute", "memory", "links"), key=lambda name: getattr(self, name))


def lower_bound(
    chip: Chip, *, flops: float, moved: float, weights: float, reads: int, sent: float
) -> Bound:
    """The bound of one call, from what one chip has to do.

    Args:
      flops: of matrix products. sent: bytes that leave the chip.
      moved: bytes of arguments and results that are read or written once.
      weights: bytes of matrices on the chip, which are needed ``reads`` times; what fits the chip's
        vector memory might stay there from one time to the next.
    """
    again = max(reads - 1, 0) * max(weights - chip.on_chip, 0.0)
    return Bound(flops / chip.flops, (moved + again) / chip.bandwidth, sent / chip.links)
