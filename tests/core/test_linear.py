from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from sleeplm.core.linear import matmul


def inputs(*lead):
    k = jax.random.split(jax.random.key(0), 2)
    return jax.random.normal(k[0], (*lead, 8, 5)), jax.random.normal(k[1], (5, 3))


def value_and_grads(product):
    def loss(x, w):
        return jnp.sum(jnp.sin(product(x, w)))

    return jax.value_and_grad(loss, argnums=(0, 1))


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.shape == y.shape
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lead", [(), (4,), (2, 3)])
def test_value_and_gradients_are_those_of_the_plain_product(lead):
    x, w = inputs(*lead)
    wanted = value_and_grads(jnp.matmul)(x, w)
    assert_same(value_and_grads(matmul)(x, w), wanted)
    assert_same(jax.jit(value_and_grads(matmul))(x, w), wanted)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_it_maps_over_rows_over_learners_and_over_both(axes):
    x, w = inputs(4)
    x = x if axes[0] == 0 else x[0]
    w = jnp.stack([w, 2 * w, -w, w + 1]) if axes[1] == 0 else w
    maps = [jax.vmap(value_and_grads(f), in_axes=axes) for f in (matmul, jnp.matmul)]
    assert_same(jax.jit(maps[0])(x, w), maps[1](x, w))


def test_it_scans_and_rematerialises():
    x, w = inputs(4)

    def stacked(product):
        def loss(w):
            step = jax.checkpoint(lambda h, row: (h + jnp.tanh(product(row, w)), None))
            return jnp.sum(jax.lax.scan(step, jnp.zeros((8, 3)), x)[0])

        return jax.jit(jax.value_and_grad(loss))(w)

    assert_same(stacked(matmul), stacked(jnp.matmul))


def test_it_keeps_bfloat16():
    x, w = (z.astype(jnp.bfloat16) for z in inputs(4))
    grads = jax.grad(lambda x, w: jnp.sum(matmul(x, w).astype(jnp.float32)), argnums=(0, 1))(x, w)
    assert matmul(x, w).dtype == grads[0].dtype == grads[1].dtype == jnp.bfloat16


@pytest.mark.parametrize("varying", [False, True])
def test_sharded_rows_give_the_summed_gradient_of_all(varying):
    x, w = inputs(4)
    devices = min(4, jax.device_count())
    mesh = jax.make_mesh((devices,), ("rows",), axis_types=(AxisType.Auto,))

    def shard(x, w):
        if not varying:  # a replicated weight: its gradient is summed for us
            return jax.grad(lambda w: jnp.sum(jnp.sin(matmul(x, w))))(w)
        w = jax.lax.pcast(w, "rows", to="varying")
        return jax.lax.psum(jax.grad(lambda w: jnp.sum(jnp.sin(matmul(x, w))))(w), "rows")

    summed = jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=(P("rows"), P()), out_specs=P()))
    assert_same(summed(x, w), value_and_grads(jnp.matmul)(x, w)[1][1])
