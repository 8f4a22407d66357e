"""Splitting a parameter tree by path, and comparing trees bit by bit."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sleeplm.core.types import Array, PyTree


def split(tree: PyTree, selected: Callable[[tuple], bool]) -> tuple[PyTree, PyTree]:
    """``(chosen, rest)``, both in the shape of ``tree`` with None where the other has the leaf.

    Args:
      selected: called with the key path of every leaf. It runs at trace time, so that gradients
        and optimiser states exist for the chosen leaves only.
    """
    chosen = jax.tree_util.tree_map_with_path(lambda p, x: x if selected(p) else None, tree)
    rest = jax.tree_util.tree_map_with_path(lambda p, x: None if selected(p) else x, tree)
    return chosen, rest


def merge(chosen: PyTree, rest: PyTree) -> PyTree:
    """Undoes :func:`split`."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, chosen, rest, is_leaf=lambda x: x is None
    )


def where(ok: Array, new: PyTree, old: PyTree) -> PyTree:
    """``new`` if the scalar ``ok``, else ``old``, leaf by leaf and bit by bit."""
    return jax.tree.map(lambda n, o: jnp.where(ok, n, o), new, old)


def size(tree: PyTree) -> int:
    """Number of elements in all leaves."""
    return sum(x.size for x in jax.tree.leaves(tree))


def nbytes(tree: PyTree) -> int:
    """Bytes of all leaves."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def differing(a: PyTree, b: PyTree) -> list[str]:
    """Paths of the leaves whose bits differ between two trees of one shape (host side)."""

    def bits(x: Array):
        x = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        return jax.device_get(x).tobytes()

    left = jax.tree_util.tree_leaves_with_path(a)
    right = jax.tree.leaves(b)
    return [
        jax.tree_util.keystr(path)
        for (path, x), y in zip(left, right, strict=True)
        if bits(x) != bits(y)
    ]


def in_pieces(tree: PyTree, rows: int) -> PyTree:
    """Arrays [B, ...] cut into [B / rows, rows, ...], the last piece filled up with zeros."""

    def cut(x: Array) -> Array:
        filled = jnp.pad(x, ((0, -len(x) % rows), *((0, 0),) * (x.ndim - 1)))
        return filled.reshape(-1, rows, *x.shape[1:])

    return jax.tree.map(cut, tree)
