"""Work that the devices of a mapped axis share: each does its part, and all know the whole.

For steps inside ``shard_map`` or ``pmap`` that have to look at everything, as who chooses the best
of all does: what is looked at is the same on every device, what is costly is done once.
Without an axis (``axis_name=None``) one device does it all, and nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from sleeplm.core.types import Array, PyTree

Tree = TypeVar("Tree")
Axis = str | Sequence[str] | None


def everyone(rows: Tree, axis_name: Axis) -> Tree:
    """All devices' rows, in the order of the devices: [B, ...] -> [D B, ...], the same on each."""
    if axis_name is None:
        return rows
    return jax.tree.map(
        lambda x: jax.lax.all_gather(x, axis_name, tiled=True, to="invarying"), rows
    )


def own_share(entries: Tree, axis_name: Axis) -> tuple[Tree, Array]:
    """This device's share of what all have, [n, ...] -> [ceil(n / D), ...], and bool: which count.

    Where n is no multiple of the devices the last entry is repeated, and counts once.
    """
    count = len(jax.tree.leaves(entries)[0])
    if axis_name is None:
        return entries, jnp.ones((count,), bool)
    size = -(-count // jax.lax.axis_size(axis_name))
    index = jax.lax.axis_index(axis_name) * size + jnp.arange(size)
    taken = jax.tree.map(lambda x: x[jnp.minimum(index, count - 1)], entries)
    return taken, index < count


def shared(work: Callable[[Any], Tree], entries: PyTree, axis_name: Axis) -> Tree:
    """``work(entries)``, whose results have the entries in front, a part of them by each device.

    ``work`` may use what lies on every device if it was made :func:`varying`; what it returns is
    the same on all.
    """
    count = len(jax.tree.leaves(entries)[0])
    if axis_name is None:
        return work(entries)
    found = everyone(work(own_share(entries, axis_name)[0]), axis_name)
    return jax.tree.map(lambda x: x[:count], found)


def summed(values: Tree, axis_name: Axis) -> Tree:
    """The sum over all devices."""
    return values if axis_name is None else jax.lax.psum(values, axis_name)


def varying(tree: Tree, axis_name: Axis) -> Tree:
    """The same, each device's its own: gradients of it are then not summed behind our backs.

    ``shard_map`` sums the gradient of what all devices have.
    """
    if axis_name is None:
        return tree
    names = {axis_name} if isinstance(axis_name, str) else set(axis_name)

    def vary(x: Array) -> Array:
        missing = tuple(names - set(jax.typeof(x).manual_axis_type.varying))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(vary, tree)


def varying_as(tree: Tree, like: PyTree) -> Tree:
    """:func:`varying` over the axes that the arrays of ``like`` vary over.

    For the carry of a loop, which must not begin as the same on every device and come out as each
    device's own, and for what has a gradient of our own, which must vary as its operand does.
    """
    axes = [jax.typeof(x).manual_axis_type.varying for x in jax.tree.leaves(like)]
    return varying(tree, tuple(frozenset().union(*axes)))
