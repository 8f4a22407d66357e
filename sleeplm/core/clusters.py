"""How alike outputs are: a model that collapsed says the same whatever it is asked."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sleeplm.core.types import Array

#: Odd numbers of each hash, of nothing in common: by a token, by its place, and to spread their
#: bits (the last two are those of MurmurHash3, and of C. Wellons' ``lowbias32``).
MULTIPLIERS = (
    (2654435761, 2246822519, 0x85EBCA6B, 0xC2B2AE35),
    (3266489917, 374761393, 0x7FEB352D, 0x846CA68B),
)


def row_hashes(rows: Array) -> list[Array]:
    """Two uint32 [Q] for rows int32 [Q, A]: rows that differ agree in both by chance only."""
    token = rows.astype(jnp.uint32) + 1
    place = jnp.arange(1, rows.shape[1] + 1, dtype=jnp.uint32)
    hashes = []
    for by_token, by_place, *avalanche in MULTIPLIERS:
        # Not a product of token and place: 3 * 12 and 9 * 4 are the same by any multiplier.
        mixed = token * jnp.uint32(by_token) ^ place * jnp.uint32(by_place)
        for multiplier in avalanche:
            mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(multiplier)
        hashes.append(jnp.sum(mixed ^ (mixed >> 16), axis=1, dtype=jnp.uint32))
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
