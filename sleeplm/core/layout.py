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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from sleeplm.core.types import Array, PyTree

#: ``(names of the axes, shape) -> sharding``, or None where the shape does not fit.
Place = Callable[[Sequence[str], tuple[int, ...]], Sharding | None]


class Layout(NamedTuple):
    """What the names of axes mean on a mesh.

    Attributes:
      place: where an activation lies.
      rows: axes of the mesh that rows are spread over. devices: how many these are.
    """

    place: Place
    rows: tuple[str, ...] = ()
    devices: int = 1


_LAYOUT: contextvars.ContextVar[Layout | None] = contextvars.ContextVar("layout", default=None)


def named(x: Array, *axes: str) -> Array:
    """``x`` unchanged, with its axes named as in :data:`sleeplm.runtime.rules.MESH_AXES`."""
    layout = _LAYOUT.get()
    sharding = None if layout is None else layout.place(axes, x.shape)
    return x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)


@contextlib.contextmanager
def over(layout: Layout) -> Iterator[None]:
    """What is traced inside has its named activations laid out so."""
    token = _LAYOUT.set(layout)
    try:
        yield
    finally:
        _LAYOUT.reset(token)


def in_batches(fn: Callable[[Any], PyTree], each: PyTree, at_once: int = 0) -> PyTree:
    """``fn`` of every entry of ``each``, some at once: copies of a learner, rows on their own.

    On a mesh whose devices have rows of their own, a batch is filled up to a multiple of these
    devices and spread over them: each makes its own entries, instead of a part of every one.

    Args:
      each: every array has the entries in front.
      at_once: entries of one batch; 0: all of them.

    Returns:
      What ``fn`` returns, with the entries in front.
    """
    count = len(jax.tree.leaves(each)[0])
    size = min(at_once or count, count)
    layout = _LAYOUT.get()
    if layout is None or layout.devices == 1:
        if size == count:
            return jax.vmap(fn)(each)
        return jax.lax.map(fn, each, batch_size=size)
    size += -size % layout.devices
    batches = -(-count // size)
    index = jnp.minimum(jnp.arange(batches * size), count - 1).reshape(batches, size)
    inside = Layout(_whole_rows(layout.place))

    def alone(entry: PyTree) -> PyTree:
        with over(inside):
            return fn(entry)

    def batch(index: Array) -> PyTree:
        entries = jax.tree.map(lambda x: x[index], each)
        return jax.vmap(alone, spmd_axis_name=layout.rows)(entries)

    if batches == 1:
        return jax.tree.map(lambda x: x[:count], batch(index[0]))
    found = jax.lax.map(batch, index)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], found)


def _whole_rows(place: Place) -> Place:
    """The same for what has rows on one device: those of one entry of a spread batch."""

    def inside(axes: Sequence[str], shape: tuple[int, ...]) -> Sharding | None:
        return place(["time" if axis == "row" else axis for axis in axes], shape)

    return inside
