"""Runs on simulated devices, of one process or several on this machine."""

from __future__ import annotations

import os
import pathlib
import socket
from typing import Any

import jax
import numpy as np

from sleeplm.core import tree

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


def assert_same_lines(ours: list[dict], theirs: list[dict]) -> None:
    """Recall and counts are the same, losses and log-probabilities within 1e-5."""
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            if not isinstance(value, list) or name in ("recall", "pretrain", "nights", "unique"):
                assert value == other[name], (name, mine)
            else:
                pair = (np.asarray(x, float) for x in (value, other[name]))
                np.testing.assert_allclose(*pair, rtol=1e-5, atol=1e-5, err_msg=name)


def assert_same_learners(ours: Any, theirs: Any) -> None:
    """Parameters within 1e-5; whatever was decided, drawn or counted to the last bit."""
    ours, theirs = (
        jax.device_get(x.replace(key=jax.random.key_data(x.key))) for x in (ours, theirs)
    )
    for a, b in zip(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    for part in ("slots", "cues", "counters", "key"):
        assert tree.differing(getattr(ours, part), getattr(theirs, part)) == []
