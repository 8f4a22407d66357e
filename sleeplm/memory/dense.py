"""Experts as two products over the whole pool, or as much of it as is in use.

On a CPU one large product beats picking experts token by token while pools are small. Slots open
from the lowest up, so that the open ones mostly stand in front: only the first quarters of the
pool that hold them are multiplied by, which changes no result.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sleeplm.core.linear import weight_gradient
from sleeplm.core.platform import platform
from sleeplm.core.shares import varying_as
from sleeplm.core.types import Array, PyTree

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"linear": lambda x: x, "silu": jax.nn.silu}
QUARTERS = 4


def dense_experts(
    x: Array, a: Array, b: Array, mask: Array, active: Array | None, activation: str
) -> Array:
    """``sum_s mask[t, s] * act(x[t] A_s) B_s``.

    Args:
      x: [T, D]. a: [S, D, R]. b: [S, R, D]. mask: [T, S], 0 where a token does not use an expert.
      active: bool [S], open slots: ``mask`` is 0 on all others. None: any may be in use.

    Returns:
      [T, D] in the type of ``x``.
    """
    slots = a.shape[0]
    reach = jnp.int32(slots) if active is None else _reach(active)
    branch = sum((reach > n).astype(jnp.int32) for n in _sizes(slots)[:-1])
    operands = (x, a, b, mask)
    return _experts(activation, *varying_as(operands, operands), branch)


def _sizes(slots: int) -> list[int]:
    """Parts of a pool of S slots that programs are made for: 0, S / 4, ... S.

    Accelerators get the whole pool: a small pool costs them little, and branches more.
    """
    if platform() != "cpu":
        return [slots]
    return sorted({-(-slots * i // QUARTERS) for i in range(QUARTERS + 1)})


@jax.custom_batching.custom_vmap
def _reach(active: Array) -> Array:
    """int32 scalar: how far from the front there are open slots.

    Under ``vmap`` one answer for all learners: a branch that differs between them would have to
    take every way.
    """
    return jnp.max(jnp.where(active, jnp.arange(1, active.shape[-1] + 1), 0)).astype(jnp.int32)


@_reach.def_vmap
def _reach_of_all(axis_size: int, in_batched: list[bool], active: Array) -> tuple[Array, bool]:
    return _reach(active.any(0)), False


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _experts(activation: str, x: Array, a: Array, b: Array, mask: Array, branch: Array) -> Array:
    return _forward(activation, x, a, b, mask, branch)[0]


def _forward(activation: str, x: Array, a: Array, b: Array, mask: Array, branch: Array):
    """The sum, and what the way back needs: x A of the slots in use, zeros of the others."""
    act = ACTIVATIONS[activation]
    slots, rank = mask.shape[1], a.shape[2]

    def first(n: int) -> Callable[[Array, Array, Array, Array], tuple[Array, Array]]:
        def run(x: Array, a: Array, b: Array, mask: Array) -> tuple[Array, Array]:
            down, up = _flat(a[:n], b[:n])
            low = x @ down
            out = (act(low) * _per_unit(mask[:, :n], rank)) @ up
            return out, jnp.pad(low, ((0, 0), (0, (slots - n) * rank)))

        return run

    out, low = jax.lax.switch(branch, [first(n) for n in _sizes(slots)], x, a, b, mask)
    return out, (x, a, b, mask, branch, low)


def _backward(activation: str, saved: PyTree, dout: Array) -> tuple:
    x, a, b, mask, branch, low = saved
    act = ACTIVATIONS[activation]
    slots, d_model, rank = a.shape

    def first(n: int) -> Callable[..., tuple[Array, ...]]:
        def run(x: Array, a: Array, b: Array, mask: Array, low: Array, dout: Array):
            down, up = _flat(a[:n], b[:n])
            value, pull = jax.vjp(act, low[:, : n * rank])
            open_ = _per_unit(mask[:, :n], rank)
            dvalue = dout @ up.T
            dup = weight_gradient(value * open_, dout)
            dmask = (dvalue * value).reshape(len(x), n, rank).sum(-1)
            (dlow,) = pull(dvalue * open_)
            ddown = weight_gradient(x, dlow)
            rest = ((0, slots - n), (0, 0), (0, 0))
            return (
                dlow @ down.T,
                jnp.pad(ddown.reshape(d_model, n, rank).swapaxes(0, 1), rest),
                jnp.pad(dup.reshape(n, rank, d_model), rest),
                jnp.pad(dmask, ((0, 0), (0, slots - n))),
            )

        return run

    branches = [first(n) for n in _sizes(slots)]
    return (*jax.lax.switch(branch, branches, x, a, b, mask, low, dout), None)


def _flat(a: Array, b: Array) -> tuple[Array, Array]:
    """A [n, D, R] and B [n, R, D] of all slots side by side: [D, n R] and [n R, D]."""
    n, d_model, rank = a.shape
    return a.swapaxes(0, 1).reshape(d_model, n * rank), b.reshape(n * rank, d_model)


def _per_unit(mask: Array, rank: int) -> Array:
    """A weight [T, n] for each of the ``rank`` hidden units of every expert: [T, n R]."""
    return jnp.repeat(mask, rank, axis=1)


_experts.defvjp(_forward, _backward)
