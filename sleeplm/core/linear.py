"""The product of activations with a weight matrix, written as the platform likes it."""

from __future__ import annotations

import jax

from sleeplm.core.platform import platform
from sleeplm.core.shares import varying_as
from sleeplm.core.types import Array


def matmul(x: Array, w: Array) -> Array:
    """``x @ w`` for x [..., D] and w [D, F].

    On a CPU the gradient of ``w`` is computed from a transposed copy of ``x``: XLA runs a product
    that contracts the leading dimension at a third of its speed elsewhere. That path knows
    reverse-mode differentiation only.
    """
    if platform() != "cpu":
        return x @ w
    # Inside shard_map a custom gradient must vary over the devices just as its operand does.
    return _cpu_matmul(*varying_as((x, w), (x, w)))


def weight_gradient(x: Array, dy: Array) -> Array:
    """``x^T @ dy`` for x [T, D] and dy [T, F]: the gradient of a weight matrix [D, F]."""
    if platform() != "cpu":
        return x.T @ dy
    # The barrier keeps XLA from folding the transposition back into the product.
    return jax.lax.optimization_barrier(x.T) @ dy


@jax.custom_vjp
def _cpu_matmul(x: Array, w: Array) -> Array:
    return x @ w


def _forward(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ w, (x, w)


def _backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, w = saved
    rows, drows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    return dy @ w.T, weight_gradient(rows, drows)


_cpu_matmul.defvjp(_forward, _backward)
