"""Where activations lie on a mesh, said by the names of their axes.

A compiler that is only told where parameters and batches lie may well spread activations over the
columns that parameters are cut into, and sum them over devices after every matrix. Models and
losses therefore say which axis of an activation is which; whoever compiles for a mesh says, with
:func:`over`, what that means there. Elsewhere nothing is said, and nothing changes.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence

import jax
from jax.sharding import Sharding

from sleeplm.core.types import Array

#: ``(names of the axes, shape) -> sharding``, or None where the shape does not fit.
Layout = Callable[[Sequence[str], tuple[int, ...]], Sharding | None]

_LAYOUT: contextvars.ContextVar[Layout | None] = contextvars.ContextVar("layout", default=None)


def named(x: Array, *axes: str) -> Array:
    """``x`` unchanged, with its axes named as in :data:`sleeplm.runtime.rules.MESH_AXES`."""
    layout = _LAYOUT.get()
    sharding = None if layout is None else layout(axes, x.shape)
    return x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)


@contextlib.contextmanager
def over(layout: Layout) -> Iterator[None]:
    """What is traced inside has its named activations laid out so."""
    token = _LAYOUT.set(layout)
    try:
        yield
    finally:
        _LAYOUT.reset(token)
