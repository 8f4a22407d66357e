"""Many learners in one compiled program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from sleeplm.core.platform import platform


def for_each(fn: Callable[..., Any], batched: bool | None = None) -> Callable[..., Any]:
    """``fn`` of one learner as a function of E: every array of every argument has E in front.

    One program whatever E is. Accelerators run the learners as one batch (``vmap``). A CPU takes
    them one after the other (``lax.map``): each learner's matrices then stay in its caches, and no
    one waits for the longest sample of another.

    Args:
      batched: as one batch, whatever the platform; None: as the platform likes it.
    """
    if batched is None:
        batched = platform() != "cpu"
    if batched:
        return jax.vmap(fn)
    return lambda *args: jax.lax.map(lambda one: fn(*one), args)
