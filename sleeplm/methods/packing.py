"""Two sequences in one row: what is padding otherwise costs as much as what is learned from."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sleeplm.core.types import Array, Extract, Memory, PyTree, Variables


def packed(extract: Extract, columns: int) -> Extract:
    """The same memory with the rows of every minibatch packed in pairs.

    Short rows join long ones, as segments 1 and 2, so that attention and targets never cross.
    Sums over tokens are the same. Rewards are per row: pack only where there are none.

    Args:
      columns: positions of a packed row; what does not fit is cut from the shorter sequence.
    """

    def run(variables: Variables, s: PyTree, batch: PyTree, key: Array):
        memory, s = extract.extract(variables, s, batch, key)
        minibatches = batch["rows"].shape[0]
        groups = jax.tree.map(lambda x: x.reshape(minibatches, -1, *x.shape[1:]), memory)
        pairs = jax.vmap(lambda group: pack_pairs(group, columns))(groups)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), pairs), s

    return Extract(extract.init, run)


def pack_pairs(memory: Memory, columns: int) -> Memory:
    """Rows [B, L] of single sequences, packed in pairs: [ceil(B / 2), columns]."""
    odd = memory.tokens.shape[0] % 2
    memory = jax.tree.map(lambda x: jnp.pad(x, [(0, odd)] + [(0, 0)] * (x.ndim - 1)), memory)
    length = (memory.segments > 0).sum(1)
    order = jnp.argsort(-length, stable=True)
    half = len(order) // 2
    first, second = order[:half], order[half:][::-1]
    index = jnp.arange(columns)
    start = length[first][:, None]
    inside = index - start
    mine = index < start
    theirs = (inside >= 0) & (inside < length[second][:, None])

    def place(x: Array) -> Array:
        extra = (1,) * (x.ndim - 2)

        def take(rows: Array, where: Array) -> Array:
            where = jnp.clip(where, 0, x.shape[1] - 1)
            where = jnp.broadcast_to(where, (half, columns)).reshape(half, columns, *extra)
            return jnp.take_along_axis(x[rows], where, 1)

        a, b = take(first, index), take(second, inside)
        shape = (half, columns, *extra)
        return jnp.where(mine.reshape(shape), a, jnp.where(theirs.reshape(shape), b, 0))

    placed = jax.tree.map(lambda x: place(x) if x.ndim > 1 else x[first], memory)
    segments = jnp.where(mine, 1, jnp.where(theirs, 2, 0)).astype(memory.segments.dtype)
    return Memory(**{**vars(placed), "segments": segments})
