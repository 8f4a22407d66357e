"""What a TPU chip has, from Google's public pages.

Sources: https://docs.cloud.google.com/tpu/docs/v5e, ``/v5p-training`` and ``/v6e`` ("key
specifications"), read in November 2026. Interconnect is given there per chip, over all links: 400
and 800 GB/s both ways (v5e, v6e), 4800 Gbit/s (v5p).
"""

from __future__ import annotations

import dataclasses

GB, GIB, TERA = 1e9, 2**30, 1e12


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
      name: as in a topology's name. kind: as its devices call themselves.
      memory: bytes of HBM. A program may have somewhat less: the compiler decides what fits.
      flops: bf16 floating-point operations per second at most.
      bandwidth: of HBM, bytes per second.
      links: bytes per second that leave a chip over all its links.
      on_chip: bytes of vector memory, in which something may stay between two uses: not on those
        pages, assumed alike for all.
    """

    name: str
    kind: str
    memory: float
    flops: float
    bandwidth: float
    links: float
    on_chip: float


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", "TPU v5 lite", 16 * GIB, 197 * TERA, 819 * GB, 200 * GB, 128 * 2**20),
        Chip("v5p", "TPU v5", 95 * GIB, 459 * TERA, 2765 * GB, 600 * GB, 128 * 2**20),
        Chip("v6e", "TPU v6 lite", 32 * GIB, 918 * TERA, 1638 * GB, 400 * GB, 128 * 2**20),
    )
}
