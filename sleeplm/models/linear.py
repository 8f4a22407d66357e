"""The product of activations with a weight matrix, written as the platform likes it."""

from __future__ import annotations

import jax

from sleeplm.core.types import Array


def matmul(x: Array, w: Array) -> Array:
    """``x @ w`` for x [..., D] and w [D, F].

    On a CPU the gradient of ``w`` is computed from a transposed copy of ``x``: XLA runs a product
    that contracts the leading dimension at a third of its speed elsewhere. That path knows
    reverse-mode differentiation only.
    """
    if jax.default_backend() != "cpu":
        return x @ w
    # Inside shard_map a custom gradient must vary over the devices just as its operand does.
    axes = _axes(x) | _axes(w)
    return _cpu_matmul(_varying(x, axes), _varying(w, axes))


def _axes(x: Array) -> frozenset[str]:
    """Mesh axes of the enclosing ``shard_map`` over which ``x`` varies."""
    return jax.typeof(x).manual_axis_type.varying


def _varying(x: Array, axes: frozenset[str]) -> Array:
    missing = tuple(axes - _axes(x))
    return jax.lax.pcast(x, missing, to="varying") if missing else x


@jax.custom_vjp
def _cpu_matmul(x: Array, w: Array) -> Array:
    return x @ w


def _forward(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ w, (x, w)


def _backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, w = saved
    # The barrier keeps XLA from folding the transposition back into the product.
    rows = jax.lax.optimization_barrier(x.reshape(-1, x.shape[-1]).T)
    return dy @ w.T, rows @ dy.reshape(-1, dy.shape[-1])


_cpu_matmul.defvjp(_forward, _backward)
