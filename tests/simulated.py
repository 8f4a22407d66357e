"""Jobs of several processes on this machine, on simulated devices."""

from __future__ import annotations

import os
import pathlib
import socket

import jax

ROOT = pathlib.Path(__file__).parents[1]
DEVICES = 4  # of a whole job


def place(processes: int) -> tuple[str, dict[str, str]]:
    """Where the processes of a job find each other, and the environment of each.

    They share the devices evenly, and compile as the suite does, into the same cache.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    return coordinator, {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(DEVICES // processes),
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": " ".join(flags),
    }
