"""Ways of doing one thing, timed in turns: what else the machine does slows all of them alike."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of one way.

    Attributes:
      first: of its first turn, which compiles or warms up. later: of the others.
    """

    first: float
    later: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the later turns."""
        return float(np.median(self.later))


def in_turns(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Times]:
    """Seconds of each way, in ``rounds`` turns and a first one before them.

    What a way returns is waited for.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, run in ways.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - began)
    return {name: Times(times[0], tuple(times[1:])) for name, times in seconds.items()}
