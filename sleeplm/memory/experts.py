"""Low-rank experts and their router: one function from hidden states to what the pool adds.

Shapes never change: all S experts exist from the start and a mask says which are open, so no
night ever recompiles. A token uses at most ``top_k`` of the open ones; what it costs does not
depend on how many are open.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sleeplm.core.platform import platform
from sleeplm.core.types import Array, PyTree
from sleeplm.memory.dense import ACTIVATIONS, dense_experts

DISPATCHES = ("auto", "gather", "grouped", "dense")


def route(
    x: Array,
    router: PyTree,
    active: Array,
    *,
    top_k: int,
    gate: str,
    explore: Array | None = None,
) -> tuple[Array, Array]:
    """Chooses experts for every token.

    Args:
      x: [B, L, D] inputs of the level.
      router: {"w" [D, S], "bias" [S]}.
      active: bool [S], open slots. Closed ones never get weight, nor gradient.
      top_k: K, how many experts a token may use.
      gate: ``sigmoid`` weights each chosen expert by its own gate against a zero route;
        ``softmax`` shares one unit of weight between the open experts and one zero route of
        logit 0 that has no parameters and adds nothing.
      explore: [B, S] noise or None. If given, each row also uses the open expert with the
        largest noise (section 6, the random extra expert): at the weight of an undecided gate,
        0.5, or as it is used anyway, whichever is more.

    Returns:
      index int32 [B, L, K'] and weight float32 [B, L, K'], K' = top_k (+ 1 if exploring); heaviest
      first, or all in the order of their slots where ``top_k`` is S.
    """
    logits = jnp.einsum("bld,ds->bls", x, router["w"]).astype(jnp.float32)
    logits = logits + router["bias"].astype(jnp.float32)
    masked = jnp.where(active, logits, -jnp.inf)
    if gate == "sigmoid":
        value = jax.nn.sigmoid(masked)
    else:
        zero = jnp.zeros((*masked.shape[:-1], 1), jnp.float32)
        value = jax.nn.softmax(jnp.concatenate([zero, masked], -1), axis=-1)[..., 1:]
    if top_k == value.shape[-1]:  # nothing to choose, hence nothing to sort
        weight, index = value, jnp.broadcast_to(jnp.arange(top_k), value.shape)
    else:
        weight, index = jax.lax.top_k(value, top_k)
    if explore is not None:
        extra = jnp.argmax(jnp.where(active, explore, -jnp.inf), axis=-1)
        extra = jnp.broadcast_to(extra[:, None, None], (*index.shape[:-1], 1))
        has = jnp.where(index == extra, weight, 0.0).sum(-1, keepdims=True)
        more = jnp.where(active.any(), jnp.maximum(0.5 - has, 0.0), 0.0)
        index = jnp.concatenate([index, extra], -1)
        weight = jnp.concatenate([weight, more], -1)
    return index.astype(jnp.int32), weight


def apply_experts(
    x: Array,
    experts: PyTree,
    index: Array,
    weight: Array,
    dispatch: str = "auto",
    activation: str = "linear",
    active: Array | None = None,
) -> Array:
    """Sum over the chosen experts of weight * B act(A x).

    Args:
      x: [B, L, D]. experts: {"a" [S, D, R], "b" [S, R, D]}. index, weight: [B, L, K].
      dispatch: ``gather`` copies the chosen experts to every token (best for a few tokens and
        many slots: decoding); ``grouped`` sorts tokens by expert and multiplies group by group
        (``lax.ragged_dot``: accelerators); ``dense`` multiplies by the pool as far as it is open
        and masks (on a CPU 5-40x faster than both while S is small); ``auto`` picks by platform
        and sizes.
      activation: ``linear`` (the paper's {A, B}) or ``silu`` between A and B.
      active: bool [S], open slots, outside of which ``weight`` is 0; None: not known.

    Returns:
      [B, L, D] in the type of ``x``.
    """
    act = ACTIVATIONS[activation]
    batch, length, d_model = x.shape
    slots = len(experts["a"])
    if dispatch == "auto":
        dispatch = _pick(slots, batch * length)
    tokens = x.reshape(-1, d_model)
    index = index.reshape(len(tokens), -1)
    weight = weight.reshape(len(tokens), -1).astype(x.dtype)
    if dispatch == "gather":  # gather first, cast second: the cost must not grow with S
        a, b = (experts[name][index].astype(x.dtype) for name in ("a", "b"))
        low = act(jnp.einsum("td,tkdr->tkr", tokens, a)) * weight[..., None]
        return jnp.einsum("tkr,tkrd->td", low, b).reshape(x.shape)
    a, b = experts["a"].astype(x.dtype), experts["b"].astype(x.dtype)
    if dispatch == "dense":
        chosen = jax.nn.one_hot(index, slots, dtype=x.dtype)
        mask = jnp.einsum("tk,tks->ts", weight, chosen)
        out = dense_experts(tokens, a, b, mask, active, activation)
    else:
        out = _grouped(tokens, a, b, index, weight, act)
    return out.reshape(x.shape)


def _grouped(
    tokens: Array, a: Array, b: Array, index: Array, weight: Array, act: Callable[[Array], Array]
) -> Array:
    """Dispatch by sorting (token, expert) pairs by expert: tokens [T, D], index [T, K]."""
    order = jnp.argsort(index.reshape(-1), stable=True)
    token = order // index.shape[1]
    sizes = jnp.bincount(index.reshape(-1), length=a.shape[0])
    rows, a, b, sizes = _mapped_together(tokens[token], a, b, sizes)
    low = act(jax.lax.ragged_dot(rows, a, sizes)) * weight.reshape(-1)[order][:, None]
    return jnp.zeros_like(tokens).at[token].add(jax.lax.ragged_dot(low, b, sizes))


def _mapped_together(*arrays: Array) -> tuple[Array, ...]:
    """The arrays unchanged, but under ``vmap`` all are mapped over as soon as one of them is.

    ``lax.ragged_dot`` cannot be vmapped over some of its operands only. The condition is
    constantly true and the compiler drops it, forward and backward.
    """
    firsts = [x[(0,) * x.ndim] for x in arrays]
    true = functools.reduce(jnp.logical_or, [first == first for first in firsts]) | True
    return tuple(jnp.where(true, x, x) for x in arrays)


def _pick(slots: int, tokens: int) -> str:
    if platform() == "cpu":
        return "dense" if slots <= 64 else "gather"
    return "gather" if tokens <= 64 else "grouped"
