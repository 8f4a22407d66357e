"""Limits that a worker sets to itself, before it imports what they are for."""

from __future__ import annotations

import os
import resource

from sleeplm.core.errors import ConfigError

#: Read by the libraries under numpy, when they are loaded.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
MIB = 1 << 20


def limit(cores: str | None, memory: int | None) -> None:
    """Limits this process, and those that it starts.

    Args:
      cores: numbers of the cores to run on, such as ``"0,2"``; None for all.
      memory: MiB of data that the process may have; beyond that an allocation fails. None for any.

    Raises:
      ConfigError: there are no such cores, or it is no amount.
    """
    if cores is not None:
        numbers = parse_cores(cores)
        os.sched_setaffinity(0, numbers)
        os.environ |= dict.fromkeys(THREADS, str(len(numbers)))
    if memory is not None:
        if memory < 1:
            raise ConfigError("memory", memory, "must be at least 1 MiB")
        # Not RLIMIT_AS: jax reserves far more address space than it uses.
        resource.setrlimit(resource.RLIMIT_DATA, (memory * MIB, memory * MIB))


def parse_cores(text: str) -> set[int]:
    """Cores named in ``"0,2"``.

    Raises:
      ConfigError: it names none, or one that this process may not use.
    """
    parts = text.split(",")
    there = os.sched_getaffinity(0)
    if not all(part.strip().isdecimal() for part in parts) or not {*map(int, parts)} <= there:
        remedy = f"must be numbers of cores, of {','.join(map(str, sorted(there)))}"
        raise ConfigError("cores", text, remedy)
    return {*map(int, parts)}
