"""How alike outputs are: a model that collapsed says the same whatever it is asked."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sleeplm.core.types import Array


def row_hashes(rows: Array) -> list[Array]:
    """Two uint32 [Q] for rows int32 [Q, A]: rows that differ agree in both by chance only."""
    place = jnp.arange(1, rows.shape[1] + 1, dtype=jnp.uint32)
    hashes = []
    for multiplier in (2654435761, 2246822519):
        mixed = (rows.astype(jnp.uint32) + 1) * (place * jnp.uint32(multiplier) | 1)
        mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(multiplier)
        hashes.append(jnp.sum(mixed ^ (mixed >> 13), axis=1, dtype=jnp.uint32))
    return hashes


def largest_cluster(rows: Array, weights: Array) -> Array:
    """Share, by weights [Q], of the most frequent row of int32 [Q, A] (by :func:`row_hashes`)."""
    hashes = row_hashes(rows)
    order = jnp.lexsort(hashes)
    ranked = jnp.stack(hashes)[:, order]
    starts = (ranked[:, 1:] != ranked[:, :-1]).any(0)
    run = jnp.pad(jnp.cumsum(starts.astype(jnp.int32)), (1, 0))
    size = jax.ops.segment_sum(weights[order], run, len(order))
    return size.max() / jnp.maximum(weights.sum(), 1e-8)
