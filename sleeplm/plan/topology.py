"""The devices of a pod that is not there, for programs to be compiled for."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence

import jax

from sleeplm.core.errors import ConfigError
from sleeplm.plan.chips import CHIPS, Chip

NAME = re.compile(r"(\w+):(\d+(?:x\d+)*)")
#: libtpu asks a cloud machine about itself, unless it is told not to.
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    # Planning takes no TPU: others may plan, or use one, at the same time.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def there_is_a_compiler() -> bool:
    """Whether libtpu is installed, which compiles for TPUs without one."""
    return (
        bool(os.environ.get("TPU_LIBRARY_PATH")) or importlib.util.find_spec("libtpu") is not None
    )


def chip_of(topology: str) -> Chip:
    """The chip that a topology such as ``v5e:4x4`` is made of.

    Raises:
      ConfigError: the name is of no known form or chip.
    """
    found = NAME.fullmatch(topology)
    if not found:
        raise ConfigError("topology", topology, "name a chip and its grid, such as v5e:4x4")
    if found[1] not in CHIPS:
        hint = "; GPUs cannot be planned for without one" if found[1] in ("gpu", "cuda") else ""
        raise ConfigError("topology", topology, f"the chip is one of {', '.join(CHIPS)}{hint}")
    return CHIPS[found[1]]


def devices(topology: str) -> Sequence[jax.Device]:
    """The devices of a topology, in the order of a mesh: compile for them, run nothing.

    Raises:
      ConfigError: an unknown topology, or libtpu is not installed.
    """
    chip_of(topology)
    if not there_is_a_compiler():
        remedy = "needs libtpu, which compiles for TPUs without one: pip install 'sleeplm[plan]'"
        raise ConfigError("topology", topology, remedy)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # libtpu raises what it likes; its first line says why
        said = " ".join(str(error).split())[:160]
        raise ConfigError("topology", topology, f"is none that libtpu knows: {said}") from None
    return found.devices
