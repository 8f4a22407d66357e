"""TPU slices on GKE: what selects their nodes, and how many hosts and chips they have.

Values are those of Google's pages on TPUs in GKE: the node labels ``gke-tpu-accelerator`` and
``gke-tpu-topology`` (both of ``cloud.google.com``), and the machine types with their chips.
"""

from __future__ import annotations

import dataclasses
import math

from sleeplm.core.checks import one_of
from sleeplm.core.errors import ConfigError

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SMALL_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
#: Chips of a host that is one of several in a slice.
SHARED = 4


@dataclasses.dataclass(frozen=True)
class TPU:
    """A generation.

    Attributes:
      accelerator: its value of ``cloud.google.com/gke-tpu-accelerator``.
      alone: chips of slices that are one host.
      flat: whether topologies have two dimensions rather than three.
      cores: of a chip, each of which is a device to jax.
    """

    accelerator: str
    alone: dict[str, int]
    flat: bool
    cores: int = 1


TPUS = {
    "v5e": TPU("tpu-v5-lite-podslice", {"1x1": 1, "2x2": 4, "2x4": 8}, flat=True),
    "v5p": TPU("tpu-v5p-slice", {"2x2x1": 4}, flat=False),
    "v6e": TPU("tpu-v6e-slice", {"1x1": 1, "2x2": 4, "2x4": 8}, flat=True),
    "tpu7x": TPU("tpu7x", {"2x2x1": 4}, flat=False, cores=2),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice.

    Attributes:
      accelerator, topology: labels of its nodes.
      hosts: nodes, each of which gets one pod. chips: of each node. devices: of each node, as jax
        counts them.
    """

    accelerator: str
    topology: str
    hosts: int
    chips: int
    devices: int


def find_slice(tpu: str, topology: str = "", host_chips: int = 0) -> Slice:
    """A slice by generation and topology.

    Args:
      tpu: ``v5e``, ``v5p``, ``v6e`` or ``tpu7x``.
      topology: such as ``2x4``, or ``2x2x1`` for v5p and tpu7x; the smallest by default.
      host_chips: chips of a node, where a topology comes on one host or on several; 0 for one.

    Raises:
      ConfigError: there is no such slice.
    """
    one_of("tpu", tpu, TPUS)
    kind = TPUS[tpu]
    topology = topology or next(iter(kind.alone))
    if not _exists(kind, topology):
        known = ", ".join(_FLAT if kind.flat else (*_SMALL_CUBES, "or three multiples of 4"))
        raise ConfigError("topology", topology, f"must be one that {tpu} has: {known}")
    count = math.prod(map(int, topology.split("x")))
    chips = host_chips or kind.alone.get(topology, SHARED)
    if chips not in {kind.alone.get(topology), SHARED} or count % chips:
        remedy = f"{topology} of {tpu} has hosts of {kind.alone.get(topology, SHARED)}"
        raise ConfigError("host_chips", chips, f"{remedy} chips")
    return Slice(kind.accelerator, topology, count // chips, chips, chips * kind.cores)


def _exists(kind: TPU, topology: str) -> bool:
    if kind.flat:
        return topology in _FLAT
    parts = topology.split("x")
    if topology in _SMALL_CUBES:
        return True
    return len(parts) == 3 and all(p.isdecimal() and int(p) > 0 and int(p) % 4 == 0 for p in parts)
