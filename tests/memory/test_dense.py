"""Experts as products over as much of the pool as is open: always the plain sum over slots."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from sleeplm.memory.dense import ACTIVATIONS, dense_experts

T, D, R, S = 12, 6, 3, 7
NAMES = ("x", "a", "b", "mask")
POOLS = {"none": (), "first": (0,), "two quarters": (0, 1, 2), "a gap": (1, 5), "all": range(S)}


def inputs(slots, seed=0):
    """x, a, b, and a mask that is 0 on closed slots; bool [S] of the open ones."""
    keys = jax.random.split(jax.random.key(seed), 4)
    active = jnp.isin(jnp.arange(S), jnp.asarray(list(slots), jnp.int32))
    x = jax.random.normal(keys[0], (T, D))
    a, b = (jax.random.normal(k, s) for k, s in zip(keys[1:], ((S, D, R), (S, R, D)), strict=False))
    return (x, a, b, jax.random.normal(keys[3], (T, S)) * active), active


def plainly(x, a, b, mask, activation):
    low = ACTIVATIONS[activation](jnp.einsum("td,sdr->tsr", x, a))
    return jnp.einsum("tsr,ts,srd->td", low, mask, b)


def graded(call, arguments):
    """Value of a scalar of the outcome, and its gradients by all four inputs."""
    return jax.value_and_grad(lambda *args: jnp.sum(jnp.sin(call(*args))), (0, 1, 2, 3))(*arguments)


def assert_same(ours, theirs, active=None):
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-4, atol=1e-4)
    for name, one, other in zip(NAMES, ours[1], theirs[1], strict=True):
        if name == "mask" and active is not None:  # closed slots have no weight that could move
            one, other = one[..., active], other[..., active]
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("slots", POOLS.values(), ids=POOLS)
def test_value_and_gradients_are_those_of_the_plain_sum(slots, activation):
    arguments, active = inputs(slots)
    theirs = graded(lambda *a: plainly(*a, activation), arguments)
    ours = graded(lambda *a: dense_experts(*a, active, activation), arguments)
    assert_same(ours, theirs, np.asarray(active))
    unsaid = graded(lambda *a: dense_experts(*a, None, activation), arguments)
    assert_same(unsaid, theirs)


def test_what_lies_behind_the_last_open_quarter_is_not_touched():
    (x, a, b, mask), active = inputs((0, 1))
    a, b = a.at[4:].set(jnp.nan), b.at[4:].set(jnp.nan)
    value, grads = graded(lambda *args: dense_experts(*args, active, "silu"), (x, a, b, mask))
    assert np.isfinite(value)
    assert all(np.isfinite(grad).all() for grad in grads)
    whole, _ = graded(lambda *args: dense_experts(*args, None, "silu"), (x, a, b, mask))
    assert np.isnan(whole)


def test_learners_with_different_pools_side_by_side_equal_each_alone():
    each = [inputs(slots, seed) for seed, slots in enumerate(((0,), (0, 1, 2, 3), ()))]
    arguments = jax.tree.map(lambda *x: jnp.stack(x), *[one[0] for one in each])
    actives = jnp.stack([one[1] for one in each])

    def call(arguments, active):
        return graded(lambda *a: dense_experts(*a, active, "silu"), arguments)

    together = jax.jit(jax.vmap(call))(arguments, actives)
    for i, (own, active) in enumerate(each):
        mine = jax.tree.map(lambda x, i=i: x[i], together)
        assert_same(mine, call(own, active), np.asarray(active))


def test_how_much_of_the_pool_is_open_is_data_and_never_recompiles():
    arguments, _ = inputs(range(S))
    call = jax.jit(lambda args, active: dense_experts(*args, active, "silu"))
    for slots in POOLS.values():
        call(arguments, inputs(slots)[1])
    assert call._cache_size() == 1


@pytest.mark.parametrize("slots", POOLS.values(), ids=POOLS)
def test_inside_shard_map_rows_add_up_to_the_gradient_of_all(slots):
    (x, a, b, mask), active = inputs(slots)
    devices = min(4, jax.device_count())
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def part(x, a, b, mask, active):
        a, b = (jax.lax.pcast(z, "data", to="varying") for z in (a, b))
        value, grads = graded(lambda *args: dense_experts(*args, active, "silu"), (x, a, b, mask))
        whole = [jax.lax.psum(z, "data") for z in (value, grads[1], grads[2])]
        return whole[0], whole[1], whole[2], grads[0], grads[3]

    spread = jax.shard_map(
        part,
        mesh=mesh,
        in_specs=(P("data"), P(), P(), P("data"), P()),
        out_specs=(P(), P(), P(), P("data"), P("data")),
    )
    value, da, db, dx, dmask = jax.jit(spread)(x, a, b, mask, active)
    alone = graded(lambda *args: dense_experts(*args, active, "silu"), (x, a, b, mask))
    assert_same((value, (dx, da, db, dmask)), alone)
