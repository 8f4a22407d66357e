"""The key/value cache of generation, and attention over it, laid out as the platform likes it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sleeplm.core.layout import named
from sleeplm.core.platform import platform
from sleeplm.core.types import Array, PyTree


def heads_first() -> bool:
    """Whether a cache is [B, KV, T, W] rather than [B, T, KV, W].

    On a CPU each head's keys must lie together: the products over the cache then run 2x faster.
    """
    return platform() == "cpu"


def empty_cache(batch: int, length: int, heads: int, width: int, dtype: jnp.dtype) -> PyTree:
    """{"k", "v"} of one layer, zeros, for ``length`` = T positions of ``heads`` = KV heads."""
    sizes = {"row": batch, "time": length, "kv_heads": heads, "width": width}
    shape = [sizes[axis] for axis in axes_of_cache()]
    return {name: named(jnp.zeros(shape, dtype), *axes_of_cache()) for name in ("k", "v")}


def axes_of_cache() -> tuple[str, ...]:
    """Names of the axes of one layer's cache, in order."""
    first = ("row", "kv_heads", "time", "width")
    return first if heads_first() else ("row", "time", "kv_heads", "width")


def cached_attention(
    q: Array, k: Array, v: Array, mask: Array, cache: PyTree, at: Array | int
) -> tuple[Array, PyTree]:
    """Writes k and v at time ``at`` and attends over the whole cache.

    Args:
      q: [B, L, H, W]. k, v: [B, L, KV, W], of the L positions from ``at`` on.
      mask: bool [B, 1, L, T]; True where a query sees a position of the cache.

    Returns:
      [B, L, H, W] in the type of ``q``, and the cache's next state.
    """
    new, axis = {"k": k, "v": v}, 1
    if heads_first():
        new, axis = {name: x.swapaxes(1, 2) for name, x in new.items()}, 2
    cache = {
        name: jax.lax.dynamic_update_slice_in_dim(
            cache[name], x.astype(cache[name].dtype), at, axis
        )
        for name, x in new.items()
    }
    k, v = (cache[name].astype(q.dtype) for name in ("k", "v"))
    if not heads_first():
        return jax.nn.dot_product_attention(q, k, v, mask=mask), cache
    batch, length, heads, width = q.shape
    groups = k.shape[1]
    # One product per head group: its queries, all positions of the call, are the rows.
    q = q.reshape(batch, length, groups, heads // groups, width).transpose(0, 2, 1, 3, 4)
    q = q.reshape(batch, groups, -1, width)
    scores = jnp.einsum("bgqw,bgtw->bgqt", q, k, preferred_element_type=jnp.float32) * width**-0.5
    seen = jnp.broadcast_to(mask[:, :, :, None], (*mask.shape[:3], heads // groups, mask.shape[3]))
    scores = jnp.where(seen.reshape(batch, 1, -1, mask.shape[3]), scores, -jnp.inf)
    weight = jax.nn.softmax(scores, -1).astype(v.dtype)
    out = jnp.einsum("bgqt,bgtw->bgqw", weight, v)
    out = out.reshape(batch, groups, length, heads // groups, width).transpose(0, 2, 1, 3, 4)
    return out.reshape(batch, length, heads, width), cache
