"""Many learners in one compiled program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def for_each(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn`` of one learner as a function of E: every array of every argument has E in front.

    One program whatever E is. Accelerators run the learners as one batch (``vmap``). A CPU takes
    them one after the other (``lax.map``): each learner's matrices then stay in its caches, which
    makes five of them about 1.4 times faster, and each ends with the bits that it ends with alone.
    """
    if jax.default_backend() != "cpu":
        return jax.vmap(fn)
    return lambda *args: jax.lax.map(lambda one: fn(*one), args)
